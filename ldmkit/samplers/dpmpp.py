r"""DPM-Solver++: exponential integrators of second order on the estimate of x0.

With :math:`h = \lambda' - \lambda` and :math:`\lambda = \log(\alpha / \sigma)`, one step is the first-order one with an
estimate of x0 that looks half a step ahead,

.. math::
    x' = \frac{\sigma'}{\sigma} x + \alpha' (1 - e^{-h}) D, \qquad
    D = x_0 + \frac{h}{2 h_{-1}} \left(x_0 - x_{0,-1}\right) \;\text{(2M)}, \qquad
    D = x_0(x_{\lambda + h/2}) \;\text{(2S)}

from the estimate of the step before, or from one more evaluation. The stochastic solver does the same for the
diffusion SDE; eta sets how much of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ldmkit.denoiser import Denoise
from ldmkit.noise import NoiseSource
from ldmkit.process import Level, Levels
from ldmkit.samplers.contract import AtStop
from ldmkit.samplers.transfer import refuse_clean_stops, refuse_eta, refuse_rising, stride, transfer


@dataclass(frozen=True)
class DPMPP2M:
    """DPM-Solver++(2M), order 2; N steps cost N evaluations.

    The first step is of first order, and so is the step onto a clean level, as published: it returns the estimate of
    x0. From pure noise the first two are, which does not lower the order.

    Raises:
        ValueError: in a call, a clean level to leave from.

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2.
    """

    order = 2
    stochastic = False

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        refuse_clean_stops(levels, "dpmpp-2m")

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`. ``noise`` is not drawn.

        Raises:
            ValueError: a clean level to leave from.
        """
        self.check(levels)
        steps = zip(levels.steps(), _ahead(levels), strict=True)
        plan = [(now, *transfer(now, nxt), ahead) for (now, nxt), ahead in steps]
        before: Tensor | None = None
        for now, keep, toward, ahead in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            x0 = denoise(x, now)
            x = (x * keep).add_(x0, alpha=toward * (1 + ahead))
            if before is not None and ahead:
                x.sub_(before, alpha=toward * ahead)
            before = x0
        return x


@dataclass(frozen=True)
class DPMPP2S:
    """DPM-Solver++(2S), order 2; two evaluations a step, the second one half-way in log-SNR.

    There is no half-way next to a clean level or to pure noise: there the step is of first order with one evaluation,
    and onto a clean level it returns the estimate of x0. N steps that land clean cost 2 N - 1.

    Raises:
        ValueError: in a call, a clean level to leave from.

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 1 with r = 1 / 2.
    """

    order = 2
    stochastic = False

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        refuse_clean_stops(levels, "dpmpp-2s")

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`. ``noise`` is not drawn.

        Raises:
            ValueError: a clean level to leave from.
        """
        self.check(levels)
        plan = [(now, *transfer(now, nxt), _half_way(levels, now, nxt)) for now, nxt in levels.steps()]
        for now, keep, toward, half in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            x0 = denoise(x, now)
            if half is not None:
                level, half_keep, half_toward = half
                x0 = denoise((x * half_keep).add_(x0, alpha=half_toward), level)
            x = (x * keep).add_(x0, alpha=toward)
        return x


@dataclass(frozen=True)
class DPMPP2MSDE:
    r"""DPM-Solver++(2M) for the SDE; N steps cost N evaluations.

    With :math:`k = (\sigma' / \sigma) e^{-\eta h}`, a step is :math:`x' = k x + (\alpha' - k \alpha) D + \sigma'
    \sqrt{1 - e^{-2 \eta h}}\, z`. The first step is of first order, and so is the step onto a clean level, which
    returns the estimate of x0 and adds no noise.

    Args:
        eta: the share of fresh noise, in [0, 1]; 0 is ``dpmpp-2m``, of order 2; 1 is the published solver.

    Raises:
        ValueError: eta outside [0, 1]; in a call, a clean level to leave from, or eta > 0 where noise does not fall.

    Source: Lu et al. 2022 (DPM-Solver++), SDE-DPM-Solver++(2M); eta as in k-diffusion's ``sample_dpmpp_2m_sde`` with
        its solver ``midpoint``.
    """

    eta: float = 1.0

    order = 2

    def __post_init__(self) -> None:
        refuse_eta(self.eta, "dpmpp-2m-sde")

    @property
    def stochastic(self) -> bool:
        """Whether eta is not 0."""
        return self.eta > 0

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        refuse_clean_stops(levels, "dpmpp-2m-sde")
        refuse_rising(levels, "dpmpp-2m-sde", self.eta)

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`.

        Raises:
            ValueError: a clean level to leave from, or eta > 0 where noise does not fall.
        """
        self.check(levels)
        steps = zip(levels.steps(), _ahead(levels), strict=True)
        plan = [(now, nxt, *self._descent(now, nxt), ahead) for (now, nxt), ahead in steps]
        before: Tensor | None = None
        for now, nxt, keep, toward, up, ahead in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            x0 = denoise(x, now)
            x = (x * keep).add_(x0, alpha=toward * (1 + ahead))
            if before is not None and ahead:
                x.sub_(before, alpha=toward * ahead)
            if up:
                x.add_(noise(x, nxt), alpha=up)
            before = x0
        return x

    def _descent(self, now: Level[float], nxt: Level[float]) -> tuple[float, float, float]:
        """(factor of x, factor of x0, factor of fresh noise)."""
        decay = self.eta * stride(now, nxt) if self.eta else 0.0
        keep = nxt.sigma / now.sigma * math.exp(-decay)
        return keep, nxt.alpha - keep * now.alpha, nxt.sigma * math.sqrt(-math.expm1(-2 * decay))


def _ahead(levels: Levels) -> Iterator[float]:
    """Per step h / (2 h of the step before), 0 where the step is of first order."""
    before = math.inf
    for now, nxt in levels.steps():
        h = stride(now, nxt)
        yield h / (2 * before) if math.isfinite(h) else 0.0
        before = h


def _half_way(levels: Levels, now: Level[float], nxt: Level[float]) -> tuple[Level[float], float, float] | None:
    """The level half-way and the step there; None where log-SNR is infinite at one end."""
    if not math.isfinite(stride(now, nxt)):
        return None
    level = levels.between(now, nxt, 0.5)
    return level, *transfer(now, level)
