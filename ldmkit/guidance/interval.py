"""Guidance in a limited interval of noise: strong where it helps, and half the cost elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoise
from ldmkit.guidance.contract import Bind, Guidance, by_level, taken
from ldmkit.process import Level, Levels


@dataclass(frozen=True)
class Interval:
    """Another guidance where ``low <= sigma / alpha <= high``, and the conditional model as it is elsewhere.

    The ratio is the noise level of EDM on any process, so published intervals can be used as they are. Outside the
    interval the unconditional half is not computed.

    Args:
        of: the guidance inside the interval.
        low: the least noise that is guided, at least 0.
        high: the most noise that is guided; None: no bound.

    Raises:
        ValueError: not 0 <= low <= high.

    Source: Kynkaanniemi et al. 2024 (arXiv 2404.07724), section 3.
    """

    of: Guidance
    low: float = 0.0
    high: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= (math.inf if self.high is None else self.high):
            raise ValueError(f"guidance 'interval' needs 0 <= low <= high, got low={self.low}, high={self.high}")

    @property
    def needs_uncond(self) -> bool:
        """As the guidance inside."""
        return self.of.needs_uncond

    @property
    def needs_grad(self) -> bool:
        """As the guidance inside."""
        return self.of.needs_grad

    def take(self, images: Sequence[int]) -> Interval:
        """With what ``of`` holds for these images."""
        return replace(self, of=taken(self.of, images))

    def contains(self, level: Level[float]) -> bool:
        """Whether the level is guided."""
        ratio = level.sigma / level.alpha if level.alpha else math.inf
        return self.low <= ratio <= (math.inf if self.high is None else self.high)

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """Bind what the stops need: ``of``, the conditional model, or both.

        Raises:
            ValueError: as ``of``, where it needs ``uncond`` and there is none.
        """
        if self.needs_uncond and uncond is None:  # also where no stop is inside, so that levels do not decide
            return self.of(bind, cond, uncond, levels)
        return by_level(self.contains, lambda: self.of(bind, cond, uncond, levels), lambda: bind(cond), levels)
