r"""Classifier-free guidance, and no guidance.

.. math:: \hat x_0 = x_0(\varnothing) + s \, (x_0(c) - x_0(\varnothing))

is the same on eps, v, x0 and flow, because each is linear in x0 at a fixed state. s = 1 means off, and at a level where
it is 1 the unconditional half is not computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning, batch
from ldmkit.denoiser import Denoise
from ldmkit.guidance.contract import Bind, by_level, check_scale, is_all, of_images, weights
from ldmkit.process import Level, Levels, log_snr


@dataclass(frozen=True)
class NoGuidance:
    """The conditional model as it is."""

    needs_uncond = False
    needs_grad = False

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """``bind(cond)``."""
        return bind(cond)


UNGUIDED = NoGuidance()
"""What a guidance wraps where nothing else is said."""


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance in one batched call, the unconditional half first.

    Args:
        scale: s, one number, one per image, or a function of the level; 1 is off.

    Raises:
        ValueError: a scale that is not finite.

    Source: Ho and Salimans 2022, eq. 6; Rombach et al. 2022, section 4.3.1.
    """

    scale: float | tuple[float, ...] | Callable[[Level[float]], float] = 1.0

    needs_grad = False

    def __post_init__(self) -> None:
        if not callable(self.scale):
            check_scale("cfg", self.scale)

    @property
    def needs_uncond(self) -> bool:
        """False at scale 1, where one half is enough."""
        return callable(self.scale) or not is_all(self.scale, 1)

    def take(self, images: Sequence[int]) -> CFG:
        """With the scales of these images."""
        return self if callable(self.scale) else replace(self, scale=of_images(self.scale, images))

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """Bind ``[uncond, cond]`` once; where s depends on the level and is 1 at some stop, ``cond`` alone too.

        Raises:
            ValueError: there is nothing to guide by, not one scale per image, or a scale that is not finite at a stop.
        """
        if not self.needs_uncond:
            return bind(cond)
        if uncond is None or cond.batch_size is None:
            raise ValueError(
                f"guidance 'cfg' with scale {self.scale} needs a conditioning and its null, and the model has no "
                "conditioner: use scale 1 or guidance 'none'"
            )
        null = uncond
        if not callable(self.scale):
            weight = weights("cfg", self.scale, cond)
            return _extrapolated(bind(batch([null, cond])), lambda x, level: weight(x))
        scale = cache(self.scale)
        for level in levels.stops[:-1]:
            check_scale("cfg", scale(level))
        return by_level(
            lambda level: scale(level) == 1,
            lambda: bind(cond),
            lambda: _extrapolated(bind(batch([null, cond])), lambda x, level: scale(level)),
            levels,
        )


def _extrapolated(pair: Denoise, weight: Callable[[Tensor, Level[float]], float | Tensor]) -> Denoise:
    """From the denoiser of ``[uncond, cond]`` to the guided one."""

    def guided(x: Tensor, level: Level[float]) -> Tensor:
        without, given = pair(torch.cat([x, x]), level).chunk(2)
        return without.lerp(given, weight(x, level))

    return guided


@dataclass(frozen=True)
class PiecewiseCFG:
    """Classifier-free guidance whose scale follows the noise: linear in log-SNR between given points.

    Args:
        log_snr: ``2 log(alpha / sigma)`` at the points, rising, two at least; low is noisy.
        scale: s at each point; before the first and after the last it stays as it is there.

    Raises:
        ValueError: fewer than two points, not one scale per point, a value that is not finite, or points that do not
            rise.

    Source: Ho and Salimans 2022, eq. 6, with a scale that depends on the level.
    """

    log_snr: tuple[float, ...]
    scale: tuple[float, ...]

    needs_grad = False

    def __post_init__(self) -> None:
        if len(self.log_snr) < 2 or len(self.log_snr) != len(self.scale):
            raise ValueError(
                f"guidance 'cfg-piecewise' needs two points at least, and one scale for each: got {len(self.log_snr)} "
                f"of log_snr and {len(self.scale)} of scale"
            )
        check_scale("cfg-piecewise", self.scale)
        if not all(map(math.isfinite, self.log_snr)) or sorted(set(self.log_snr)) != list(self.log_snr):
            raise ValueError(f"guidance 'cfg-piecewise' needs finite points that rise, got log_snr={self.log_snr}")

    @property
    def needs_uncond(self) -> bool:
        """False where every scale is 1."""
        return not is_all(self.scale, 1)

    def scale_at(self, level: Level[float]) -> float:
        """s at a level."""
        return float(np.interp(log_snr(level), self.log_snr, self.scale))

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """As :class:`CFG` with this function of the level.

        Raises:
            ValueError: there is nothing to guide by.
        """
        guidance = CFG(self.scale_at) if self.needs_uncond else CFG()
        return guidance(bind, cond, uncond, levels)
