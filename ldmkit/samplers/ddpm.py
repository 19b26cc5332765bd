r"""Ancestral sampling: draw from the posterior :math:`q(x' \mid x, x_0)` of the forward process.

.. math::
    x' = \alpha' x_0 + \frac{\alpha}{\alpha'} \frac{\sigma'^2}{\sigma^2} (x - \alpha x_0) + s z, \qquad
    s^2 = (1 - v)\, \tilde\beta + v\, \beta, \quad
    \beta = \sigma^2 - \left(\frac{\alpha}{\alpha'}\right)^2 \sigma'^2, \quad
    \tilde\beta = \frac{\sigma'^2}{\sigma^2} \beta

Between neighbouring levels of a table this is DDPM; between any two levels it is DDPM of the shortened chain. The step
that lands on a clean level adds no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ldmkit.denoiser import Denoise
from ldmkit.noise import NoiseSource
from ldmkit.process import Level, Levels
from ldmkit.samplers.contract import AtStop


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling with a fixed variance; on all T levels, landing clean, it is the original's ``p_sample`` loop.

    Args:
        upper_variance: v in [0, 1], the share of the upper bound beta in the variance (the original's
            ``v_posterior``); 0 is the posterior's own variance.

    Raises:
        ValueError: v outside [0, 1]; in a call, levels whose noise does not fall.

    Source: Ho et al. 2020, eq. 6, 7 and section 3.2.
    """

    upper_variance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.upper_variance <= 1:
            raise ValueError(f"sampler 'ddpm' needs upper_variance in [0, 1], got {self.upper_variance}")

    stochastic = True

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        if not levels.falling:
            raise ValueError("sampler 'ddpm' draws from a posterior, which needs levels whose noise falls")

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`.

        Raises:
            ValueError: levels whose noise does not fall.
        """
        self.check(levels)
        plan = [(now, nxt, *self._posterior(now, nxt)) for now, nxt in levels.steps()]
        for now, nxt, keep, toward, spread in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            x0 = denoise(x, now)
            x = (x * keep).add_(x0, alpha=toward)
            if spread:
                x.add_(noise(x, nxt), alpha=spread)
        return x

    def _posterior(self, now: Level[float], nxt: Level[float]) -> tuple[float, float, float]:
        """(factor of x, factor of x0, standard deviation) of q(x' | x, x0)."""
        ratio = now.alpha / nxt.alpha
        share = (nxt.sigma / now.sigma) ** 2
        keep = ratio * share
        beta = now.sigma**2 - ratio**2 * nxt.sigma**2
        variance = (1 - self.upper_variance) * share * beta + self.upper_variance * beta
        return keep, nxt.alpha - keep * now.alpha, math.sqrt(variance) if nxt.sigma else 0.0
