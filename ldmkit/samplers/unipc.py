r"""UniPC: a multistep predictor, and a corrector that costs nothing because it waits for the next evaluation.

Let :math:`P` interpolate the estimates of x0 at the last stops as a polynomial in
:math:`\tau = (\lambda - \lambda_{now}) / h`. Integrating the probability-flow ODE exactly with P in place of x0 gives

.. math::
    x' = \frac{\sigma'}{\sigma} x + \alpha' (1 - e^{-h}) \sum_j w_j\, x_{0,j}, \qquad
    \sum_j w_j \tau_j^k = b_k, \qquad
    b_k = \frac{\int_0^1 \tau^k e^{h \tau}\, d\tau}{\int_0^1 e^{h \tau}\, d\tau}

The **predictor** of order p takes the last p stops (:math:`\tau_j \le 0`). At the next stop x0 is evaluated at what
was predicted, and the **corrector** repeats the step with that estimate included (:math:`\tau = 1`). Both start from
the same state, so that correcting adds a combination of estimates and no earlier state is needed: what ``at_stop``
returns is what is corrected.

With two stops the published weights are those of small h, :math:`b_1 = 1/2`, for B(h) = exp(h) - 1 ("bh2"); with more,
B(h) cancels and the weights are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from torch import Tensor

from ldmkit.denoiser import Denoise
from ldmkit.noise import NoiseSource
from ldmkit.process import Level, Levels, log_snr
from ldmkit.samplers.contract import AtStop
from ldmkit.samplers.transfer import refuse_clean_stops, stride, transfer


@dataclass(frozen=True)
class UniPC:
    """UniPC in bh2; N steps cost N evaluations, at the predicted states.

    Order 3, which the first step sets whatever ``solver_order`` is; the predictor alone has order 2 or 3. The first
    steps use the stops there are, and the landing is not corrected. Where it is clean the step there is of first order
    and returns the estimate of x0, and the step before it is at most of second, as published. From pure noise the first
    steps in log-SNR do not shrink with N, which leaves order 2 in the end.

    Args:
        solver_order: p, 2 or 3.

    Raises:
        ValueError: another order; in a call, a clean level to leave from, or noise that neither falls at every step nor
            rises at every step.

    Source: Zhao et al. 2023, section 3 and its version for data prediction.
    """

    solver_order: int = 2

    order = 3
    stochastic = False

    def __post_init__(self) -> None:
        if self.solver_order not in (2, 3):
            raise ValueError(f"sampler 'unipc' needs solver_order 2 or 3, got {self.solver_order}")

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        refuse_clean_stops(levels, "unipc")
        if not (levels.falling or Levels(levels.process, levels.stops[::-1]).falling):
            raise ValueError(
                "sampler 'unipc' interpolates over its last stops, which needs levels whose noise falls at every step: "
                "for levels that go back and forth use a sampler without history, ddim or heun"
            )

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`. ``noise`` is not drawn.

        Raises:
            ValueError: a clean level to leave from, or levels that go back and forth.
        """
        self.check(levels)
        plan = self._plan(levels)
        history: list[Tensor] = []
        for now, keep, weights in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            history = [denoise(x, now), *history[: self.solver_order]]
            x = x * keep
            for weight, x0 in zip(weights, history, strict=False):
                x.add_(x0, alpha=weight)
        return x

    def _plan(self, levels: Levels) -> list[tuple[Level[float], float, list[float]]]:
        """Per step (now, factor of x, factors of the estimates, newest first): correction and prediction in one."""
        plan = []
        correction: list[float] = []
        for stop, (now, nxt) in enumerate(levels.steps()):
            keep, toward = transfer(now, nxt)
            past = self._past(levels, stop)
            predicted = [toward * weight for weight in _weights(past, stride(now, nxt))]
            pairs = zip_longest(correction, predicted, fillvalue=0.0)
            plan.append((now, keep, [keep * add + weight for add, weight in pairs]))
            correction = _correction(past, stride(now, nxt), toward)
        return plan

    def _past(self, levels: Levels, stop: int) -> list[float]:
        """``log(alpha / sigma)`` of the stops that the step from this one uses, less that of this one; newest first."""
        left = len(levels) - stop
        order = self.solver_order if math.isfinite(log_snr(levels.landing)) else min(self.solver_order, left)
        now, *before = levels.stops[stop::-1][:order]
        distances = (stride(now, stop) for stop in before)
        return [0.0, *(distance for distance in distances if math.isfinite(distance))]


def _weights(past: list[float], h: float, ahead: tuple[float, ...] = ()) -> list[float]:
    """w_j, the weights of the estimates at ``ahead`` and at the stops of the past; they add up to 1."""
    if len(past) + len(ahead) == 1:
        return [1.0]
    nodes = np.array([*ahead, *(distance / h for distance in past)])
    moments = [1.0, 0.5] if len(nodes) == 2 else _moments(h, len(nodes))
    weights: list[float] = np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(moments)).tolist()
    return weights


def _correction(past: list[float], h: float, toward: float) -> list[float]:
    """What correcting adds, as factors of the estimates, that of the landing first."""
    corrected, predicted = _weights(past, h, ahead=(1.0,)), [0.0, *_weights(past, h)]
    return [toward * (new - old) for new, old in zip(corrected, predicted, strict=True)]


def _moments(h: float, count: int) -> list[float]:
    """b_0 to b_(count - 1), the means of tau**k on [0, 1] under the weight exp(h tau); by parts."""
    moments = [1.0]
    for k in range(1, count):
        moments.append(-1 / math.expm1(-h) - k * moments[-1] / h)
    return moments
