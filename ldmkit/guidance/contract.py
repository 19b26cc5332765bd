"""What a guidance is, what it may say beside, and how one turns between two bindings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoise
from ldmkit.process import Level, Levels

Bind = Callable[[Conditioning], Denoise]
"""Binds a conditioning for one call, with its caches; the levels are already known to it."""


@runtime_checkable
class Guidance(Protocol):
    """``(bind, cond, uncond, levels) -> Denoise``.

    ``needs_uncond``: whether it reads ``uncond`` at all; ``needs_grad``: whether it differentiates through the
    network, so that the call may not run in inference mode. What it binds holds ``cond`` in its last rows:
    ``bind(cond)``, or ``bind(batch([..., cond]))``.
    """

    @property
    def needs_uncond(self) -> bool: ...
    @property
    def needs_grad(self) -> bool: ...

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise: ...


Held = TypeVar("Held", covariant=True)
Kept = TypeVar("Kept")
Single = TypeVar("Single", int, float)


@runtime_checkable
class PerImage(Protocol[Held]):
    """A guidance or guider that may hold one value per image, so that a batch can be sampled in parts."""

    def take(self, images: Sequence[int]) -> Held:
        """The same for these images of the batch only, in this order."""


def taken(value: Kept, images: Sequence[int]) -> Kept:
    """``value.take(images)`` of what holds one value per image; anything else as it is."""
    return value.take(images) if isinstance(value, PerImage) else value


def by_level(
    chosen: Callable[[Level[float]], bool], yes: Callable[[], Denoise], no: Callable[[], Denoise], levels: Levels
) -> Denoise:
    """One of two denoisers at each level.

    What a stop of ``levels`` asks for is bound now; what only a level between two stops asks for, when it is met.

    Args:
        chosen: whether a level is ``yes``'s.
        yes: binds the one.
        no: binds the other.
        levels: of the call.
    """

    @cache
    def bound(choice: bool) -> Denoise:
        with torch.no_grad():
            return yes() if choice else no()

    choose = cache(chosen)
    for level in levels.stops[:-1]:
        bound(choose(level))
    return lambda x, level: bound(choose(level))(x, level)


Scale = float | Sequence[float]
"""One number, or one per image."""


def check_scale(name: str, scale: Scale) -> None:
    """Refuse a scale that is not finite.

    Raises:
        ValueError: naming the guidance.
    """
    if not torch.isfinite(torch.tensor(scale)).all():
        raise ValueError(f"guidance '{name}' needs a finite scale, got {scale}")


def is_all(scale: Scale, value: float) -> bool:
    """Whether it is this number for every image."""
    return all(one == value for one in scale) if isinstance(scale, Sequence) else scale == value


def of_images(values: Single | Sequence[Single], images: Sequence[int]) -> Single | tuple[Single, ...]:
    """The values of these images; one value for all as it is.

    Raises:
        ValueError: an image that has none.
    """
    if not isinstance(values, Sequence):
        return values
    check_images(len(values), images)
    return tuple(values[i] for i in images)


def check_images(count: int, images: Sequence[int]) -> None:
    """Refuse to take more images than there are values.

    Raises:
        ValueError: naming the image.
    """
    if max(images) >= count:
        raise ValueError(f"a guidance holds values of {count} images, and is asked for image {max(images)}: one each")


def weights(name: str, scale: Scale, cond: Conditioning) -> Callable[[Tensor], float | Tensor]:
    """``x -> scale``, a number or (B, 1, 1, 1) in the precision of x, made once a call.

    Raises:
        ValueError: not one scale per image of ``cond``, or, where that is empty, of x.
    """
    if not isinstance(scale, Sequence):
        number = float(scale)
        return lambda x: number
    row = rows(name, "scales", scale, cond)
    return lambda x: row(x.shape[0], x.device, x.dtype).view(-1, 1, 1, 1)


def rows(
    name: str, what: str, values: Sequence[float], cond: Conditioning
) -> Callable[[int, torch.device, torch.dtype], Tensor]:
    """``(B, device, dtype) -> values``, (B,), made once a call.

    Args:
        name: of the guidance, for messages.
        what: the values, for messages.
        values: one per image.
        cond: of the call; where it is empty the number of images is known at the first step.

    Raises:
        ValueError: not one value per image.
    """

    def check(count: int) -> None:
        if len(values) != count:
            raise ValueError(f"guidance '{name}' has {len(values)} {what} for {count} images")

    @cache
    def spread(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        check(count)
        return torch.tensor(values, dtype=dtype, device=device)

    if cond.batch_size is not None:
        check(cond.batch_size)
    return spread
