"""What a task is, and what it may say beside the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from ldmkit.noise import Noise

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion

Inputs = Mapping[str, Any]
"""What the user gave, by keyword: the ecosystem's names (``prompt``, ``image``, ``label``, ...)."""


@runtime_checkable
class Task(Protocol):
    """Turns inputs into a batch.

    ``takes`` names the keywords it understands; ``fills`` the batch keys it makes of them, each of which some
    conditioner of the model must read.
    """

    @property
    def takes(self) -> tuple[str, ...]: ...
    @property
    def fills(self) -> tuple[str, ...]: ...

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """The batch: every key in ``fills``, B samples each; the same in training and in sampling.

        Raises:
            ValueError, TypeError: an input is missing or wrong, before any computation.
        """


@dataclass(frozen=True)
class Frame:
    """What a task asks of one call beside the batch; every field but ``inputs`` may be left out.

    Args:
        inputs: what :meth:`Task.prepare` is given; images may have become tensors, read, padded and in [0, 1].
        size: (H, W) of the images the model makes, in pixels; None: the caller's ``height`` and ``width``.
        negative: inputs of the batch that guidance compares with, in place of the null.
        against: the batch keys that ``negative`` says otherwise; guided sources that read none of them stay null.
            Empty: all keys.
        shown: (H, W) of the images after ``finish``, where that cuts them; None: ``size``.
        start: (B, C, H, W) in [-1, 1], the images that the trajectory starts from.
        strength: how much of the trajectory is run from ``start``, in (0, 1]; 1: all of it.
        known: (B, C, H, W) in [-1, 1], images whose part outside ``mask`` is to be kept by a model that reads no mask.
        mask: (B, 1, H, W) in [0, 1], 1 = regenerate; beside ``known``.
        finish: last step on the images the model made, (B, C, H, W) in [0, 1]: crop, paste, recolour.
    """

    inputs: Inputs
    size: tuple[int, int] | None = None
    negative: Inputs | None = None
    against: tuple[str, ...] = ()
    shown: tuple[int, int] | None = None
    start: Tensor | None = None
    strength: float = 1.0
    known: Tensor | None = None
    mask: Tensor | None = None
    finish: Callable[[Tensor], Tensor] | None = None


@runtime_checkable
class Framing(Protocol):
    """A task whose inputs say more than the batch: the size, where to start, what to keep, how to finish."""

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """Read and check the inputs, and say what they ask of the call; before any network runs."""


@runtime_checkable
class Fitting(Protocol):
    """A task that takes its conventions from the model; :func:`ldmkit.pipeline` and training use its fitted form."""

    def fitted(self, model: LatentDiffusion) -> Task:
        """The same task, with what the model decides filled in."""


@runtime_checkable
class Noising(Protocol):
    """A task whose batch holds noise, which the seeds of the images decide and no input does.

    ``draws`` names the batch keys that :meth:`noised` adds to those in ``fills``.
    """

    @property
    def draws(self) -> tuple[str, ...]: ...

    def noised(self, batch: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
        """The prepared batch, one row per seed, with what is drawn filled in; the same in training and in sampling.

        Args:
            batch: what :meth:`Task.prepare` made.
            noise: one seed per row.
        """
