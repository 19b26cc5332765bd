"""What tasks read off a model: who reads a batch key, and what it says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ldmkit.conditioning import LATENT, AlsoReads
from ldmkit.model import LatentDiffusion


@runtime_checkable
class Classed(Protocol):
    """A conditioner of K classes, which may have names."""

    classes: int
    names: Sequence[str] | None


@runtime_checkable
class Hiding(Protocol):
    """A conditioner of masked images, with the value in [-1, 1] that its model saw in the hole."""

    hole: float


@runtime_checkable
class NoiseLevelled(Protocol):
    """A conditioner that noises what it reads: how many levels there are, and below which training draws them."""

    levels: int
    trained_below: int


def source_of(model: LatentDiffusion, key: str) -> object:
    """The first conditioner that reads a batch key, or its latent; None where nobody does."""
    for source in () if model.conditioner is None else model.conditioner.conditioners().values():
        also = source.also_reads if isinstance(source, AlsoReads) else ()
        if {key, f"{key}{LATENT}"} & {*source.reads, *also}:
            return source
    return None


def classes_of(source: object) -> tuple[int | None, tuple[str, ...] | None]:
    """(K, the classes' names) of a conditioner, as far as it says."""
    if not isinstance(source, Classed):
        return None, None
    return source.classes, None if source.names is None else tuple(source.names)
