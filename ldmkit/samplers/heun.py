r"""Heun's method in :math:`x / \alpha` over :math:`\sigma / \alpha`: Euler's step with the slope of both its ends.

In x, with :math:`\hat x` the Euler step and :math:`h = \log(\alpha' / \sigma') - \log(\alpha / \sigma)`,

.. math::
    \hat x = \frac{\sigma'}{\sigma} x + \alpha' (1 - e^{-h})\, x_0(x), \qquad
    x' = \hat x + \tfrac{1}{2} \alpha' (e^{h} - 1) \left(x_0(\hat x) - x_0(x)\right)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ldmkit.denoiser import Denoise
from ldmkit.noise import NoiseSource
from ldmkit.process import Level, Levels
from ldmkit.samplers.contract import AtStop
from ldmkit.samplers.transfer import refuse_clean_stops, stride, transfer


@dataclass(frozen=True)
class Heun:
    """Heun's method of EDM without churn, order 2; two evaluations a step.

    The step onto a clean level is an Euler step with one evaluation, as published: it returns the estimate of x0, and N
    steps that land clean cost 2 N - 1. So is the step from pure noise, where sigma / alpha is infinite.

    Raises:
        ValueError: in a call, a clean level to leave from.

    Source: Karras et al. 2022, algorithm 1.
    """

    order = 2
    stochastic = False

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        refuse_clean_stops(levels, "heun")

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`. ``noise`` is not drawn.

        Raises:
            ValueError: a clean level to leave from.
        """
        self.check(levels)
        plan = [(now, nxt, *transfer(now, nxt), _correction(now, nxt)) for now, nxt in levels.steps()]
        for now, nxt, keep, toward, correction in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            x0 = denoise(x, now)
            x = (x * keep).add_(x0, alpha=toward)
            if correction:
                ahead = denoise(x, nxt)
                x = x.add(ahead, alpha=correction).sub_(x0, alpha=correction)
        return x


def _correction(now: Level[float], nxt: Level[float]) -> float:
    """Factor of the change of x0 over the step; 0 where the step is Euler's."""
    h = stride(now, nxt)
    return nxt.alpha * math.expm1(h) / 2 if math.isfinite(h) else 0.0
