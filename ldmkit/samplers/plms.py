r"""PLMS: DDIM's step with a linear multistep estimate of the noise.

.. math::
    x' = \frac{\alpha'}{\alpha} x + \left(\sigma' - \frac{\alpha'}{\alpha} \sigma\right) \hat\epsilon, \qquad
    \hat\epsilon = \tfrac{1}{24} (55 \epsilon_n - 59 \epsilon_{n-1} + 37 \epsilon_{n-2} - 9 \epsilon_{n-3})

The first step averages the noise at both of its ends (pseudo improved Euler, one extra evaluation), the second and
third use the shorter Adams-Bashforth formulas. The weights assume even steps in t, and the step is not linear in t, so
the order is 2, not 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldmkit.denoiser import Denoise
from ldmkit.noise import NoiseSource
from ldmkit.process import Level, Levels
from ldmkit.samplers.contract import AtStop

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class PLMS:
    """PLMS, order 2 on even times; deterministic, so it has no eta. N steps cost N + 1 evaluations.

    A single step onto a clean level is a DDIM step: there is no noise to average there.

    Raises:
        ValueError: in a call, a stop at pure noise or at a clean level.

    Source: Liu et al. 2022 (PNDM), eq. 12 and 13; the original's ``PLMSSampler``.
    """

    order = 2
    stochastic = False

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        for now, nxt in levels.steps():
            _transfer(now, nxt)

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`. ``noise`` is not drawn.

        Raises:
            ValueError: a stop at pure noise or at a clean level, where the step is undefined.
        """
        plan = [(now, nxt, *_transfer(now, nxt)) for now, nxt in levels.steps()]
        history: list[Tensor] = []
        for now, nxt, keep, toward in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            eps = _eps(x, denoise(x, now), now)
            history = [eps, *history[:3]]
            if len(history) == 1 and nxt.sigma:
                ahead = torch.add(x * keep, eps, alpha=toward)
                estimate = (eps + _eps(ahead, denoise(ahead, nxt), nxt)) / 2
            else:
                estimate = _combine(history)
            x = torch.add(x * keep, estimate, alpha=toward)
        return x


def _transfer(now: Level[float], nxt: Level[float]) -> tuple[float, float]:
    """(factor of x, factor of eps) of one step."""
    if now.sigma == 0 or now.alpha == 0:
        raise ValueError(
            f"sampler 'plms' cannot stop at alpha = {now.alpha:g}, sigma = {now.sigma:g}: its step divides by both; "
            "use ddim, or levels that leave out that end"
        )
    keep = nxt.alpha / now.alpha
    return keep, nxt.sigma - keep * now.sigma


def _eps(x: Tensor, x0: Tensor, level: Level[float]) -> Tensor:
    return torch.sub(x, x0, alpha=level.alpha).div_(level.sigma)


def _combine(history: list[Tensor]) -> Tensor:
    """Adams-Bashforth over the noise estimates at hand, newest first."""
    weights = ADAMS_BASHFORTH[len(history) - 1]
    total = history[0] * weights[0]
    for weight, eps in zip(weights[1:], history[1:], strict=True):
        total.add_(eps, alpha=weight)
    return total
