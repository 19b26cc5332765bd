"""What a sampler is, and what may happen at each of its stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from ldmkit.denoiser import Denoise
from ldmkit.noise import NoiseSource
from ldmkit.process import Level, Levels

AtStop = Callable[[Tensor, Level[float]], Tensor]
"""``(x, now) -> x``, called before each step: blending, preview, interruption (by raising)."""


@runtime_checkable
class Sampler(Protocol):
    """The whole algorithm: frozen hyper-parameters and one call.

    Args:
        denoise: ``(x, level) -> x0``.
        x: (B, C, h, w), the state at ``levels.start``.
        levels: N + 1 levels; the last one is where it lands.
        noise: one draw per image.
        at_stop: called with the state before each step; returns the state to go on with.

    Returns:
        (B, C, h, w), the state at ``levels.landing``.
    """

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor: ...


@runtime_checkable
class Checking(Protocol):
    """A sampler that says before a call what it cannot do; the built-in ones all do.

    ``stochastic``: whether it draws noise at all.
    """

    @property
    def stochastic(self) -> bool: ...

    def check(self, levels: Levels) -> None:
        """Raise ValueError for levels that the sampler cannot follow."""


def blend(known: Tensor, mask: Tensor, noise: NoiseSource) -> AtStop:
    """Masked sampling as in the original: before each step the known region becomes its own noised self.

    ``x = mask * x + (1 - mask) * (alpha * known + sigma * eps)``. Nothing is put in after the last step, so the known
    region of the result carries one step of the model.

    Args:
        known: (B, C, h, w) clean latents.
        mask: (B, 1, h, w) in [0, 1], **1 = regenerate** (the original's mask is 1 = keep).
        noise: draws of its own; a :class:`ldmkit.noise.Noise` on another stream than the sampler's.
    """

    def at_stop(x: Tensor, now: Level[float]) -> Tensor:
        noised = now.alpha * known.to(x) + now.sigma * noise(x, now)
        return noised.lerp(x, mask.to(x))

    return at_stop


def in_turn(*calls: AtStop) -> AtStop:
    """Several things at each stop, first to last."""

    def at_stop(x: Tensor, now: Level[float]) -> Tensor:
        for call in calls:
            x = call(x, now)
        return x

    return at_stop
