r"""DDIM: keep the estimate of x0, move the noise.

.. math::
    \epsilon = (x - \alpha x_0) / \sigma, \qquad
    x' = \alpha' x_0 + \sqrt{\sigma'^2 - u^2}\, \epsilon + u\, z, \qquad
    u = \eta\, \sigma' \sqrt{1 - \left(\frac{\alpha}{\alpha'} \frac{\sigma'}{\sigma}\right)^2}

With eta = 0 it is the first-order solver of the probability-flow ODE in ``x / alpha`` (Euler of k-diffusion, on other
lists of levels); with eta = 1 it is ancestral sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ldmkit.denoiser import Denoise
from ldmkit.noise import NoiseSource
from ldmkit.process import Level, Levels
from ldmkit.samplers.contract import AtStop


def fresh_noise(now: Level[float], nxt: Level[float]) -> float:
    """Standard deviation of the fresh noise in one step of the ancestral sampler: u at eta = 1."""
    carried = now.alpha / nxt.alpha * nxt.sigma / now.sigma
    return nxt.sigma * math.sqrt(max(0.0, 1 - carried**2))


@dataclass(frozen=True)
class DDIM:
    """DDIM, order 1.

    Args:
        eta: the share of fresh noise, in [0, 1]; 0 is deterministic.

    Raises:
        ValueError: eta outside [0, 1]; in a call, a clean level to leave from, or eta > 0 where noise does not fall.

    Source: Song et al. 2021, eq. 12 and 16.
    """

    eta: float = 0.0

    order = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"sampler 'ddim' needs eta in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """Whether eta is not 0."""
        return self.eta > 0

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        self._plan(levels)

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`.

        Raises:
            ValueError: a clean level to leave from, or eta > 0 where noise does not fall.
        """
        plan = self._plan(levels)
        for now, nxt, keep, toward, up in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            x0 = denoise(x, now)
            x = (x * keep).add_(x0, alpha=toward)
            if up:
                x.add_(noise(x, nxt), alpha=up)
        return x

    def _plan(self, levels: Levels) -> list[tuple[Level[float], Level[float], float, float, float]]:
        """Per step: (now, nxt, factor of x, factor of x0, factor of fresh noise)."""
        if self.eta and not levels.falling:
            raise ValueError(f"sampler 'ddim' with eta = {self.eta} adds noise, which needs levels whose noise falls")
        plan = []
        for now, nxt in levels.steps():
            if now.sigma == 0:
                raise ValueError(
                    "sampler 'ddim' cannot leave a clean level, where x0 no longer says what the noise is: start at "
                    "the first level of the process, process.level(process.t_min)"
                )
            up = self.eta * fresh_noise(now, nxt) if self.eta else 0.0
            keep = math.sqrt(nxt.sigma**2 - up**2) / now.sigma
            plan.append((now, nxt, keep, nxt.alpha - keep * now.alpha, up))
        return plan
