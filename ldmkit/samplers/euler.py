r"""Euler's method in :math:`X = x / \alpha` over :math:`S = \sigma / \alpha`, the form of EDM and k-diffusion.

.. math::
    d = (X - x_0) / S, \qquad X' = X + (S_\downarrow - S)\, d + S_\uparrow z, \qquad
    S_\uparrow = \eta\, S' \sqrt{1 - S'^2 / S^2}, \quad S_\downarrow^2 = S'^2 - S_\uparrow^2

Written in x this is DDIM: ``euler`` is ``ddim`` with eta 0 and ``euler-ancestral`` is ``ddim`` with the same eta,
number for number on the same list of levels. The names are here for those who look for them. What differs elsewhere
between "Euler" and "DDIM" is the list of levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ldmkit.denoiser import Denoise
from ldmkit.noise import NoiseSource
from ldmkit.process import Level, Levels
from ldmkit.samplers.contract import AtStop
from ldmkit.samplers.ddim import fresh_noise
from ldmkit.samplers.transfer import refuse_clean_stops, refuse_eta, refuse_rising, transfer


@dataclass(frozen=True)
class Euler:
    """Euler's method, order 1; N steps cost N evaluations.

    The same as ``ddim`` with eta 0. The step onto a clean level returns the estimate of x0.

    Raises:
        ValueError: in a call, a clean level to leave from.

    Source: Karras et al. 2022, algorithm 1 without its correction; Song et al. 2021, eq. 14.
    """

    order = 1
    stochastic = False

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        refuse_clean_stops(levels, "euler")

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`. ``noise`` is not drawn.

        Raises:
            ValueError: a clean level to leave from.
        """
        self.check(levels)
        plan = [(now, *transfer(now, nxt)) for now, nxt in levels.steps()]
        for now, keep, toward in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            x = (x * keep).add_(denoise(x, now), alpha=toward)
        return x


@dataclass(frozen=True)
class EulerAncestral:
    """Euler's method to a lower level, then fresh noise up to the next one; order 1, N evaluations for N steps.

    The same as ``ddim`` with the same eta. The step onto a clean level returns the estimate of x0 and adds no noise.

    Args:
        eta: the share of fresh noise, in [0, 1]; 0 is ``euler``.

    Raises:
        ValueError: eta outside [0, 1]; in a call, a clean level to leave from, or eta > 0 where noise does not fall.

    Source: Song et al. 2021, eq. 12 and 16, in the form of k-diffusion's ``sample_euler_ancestral``.
    """

    eta: float = 1.0

    order = 1

    def __post_init__(self) -> None:
        refuse_eta(self.eta, "euler-ancestral")

    @property
    def stochastic(self) -> bool:
        """Whether eta is not 0."""
        return self.eta > 0

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        refuse_clean_stops(levels, "euler-ancestral")
        refuse_rising(levels, "euler-ancestral", self.eta)

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Sample; see :class:`ldmkit.samplers.Sampler`.

        Raises:
            ValueError: a clean level to leave from, or eta > 0 where noise does not fall.
        """
        self.check(levels)
        plan = [(now, nxt, *self._descent(now, nxt)) for now, nxt in levels.steps()]
        for now, nxt, keep, toward, up in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            x = (x * keep).add_(denoise(x, now), alpha=toward)
            if up:
                x.add_(noise(x, nxt), alpha=up)
        return x

    def _descent(self, now: Level[float], nxt: Level[float]) -> tuple[float, float, float]:
        """(factor of x, factor of x0, factor of fresh noise), through a level of sigma down and the alpha of nxt."""
        up = self.eta * fresh_noise(now, nxt) if self.eta else 0.0
        down = Level(nxt.t, nxt.alpha, math.sqrt(nxt.sigma**2 - up**2))
        return *transfer(now, down), up
