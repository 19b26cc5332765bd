r"""DDIM inversion: from a latent to the noise that DDIM makes it of.

The step of DDIM from :math:`x'` down to :math:`x`, solved for :math:`x'`,

.. math::
    x' = \frac{\alpha'}{\alpha} \left(x - \sigma \epsilon(x')\right) + \sigma' \epsilon(x'), \qquad
    \epsilon(x') = \left(x' - \alpha' x_0(x')\right) / \sigma'

with the denoiser asked at the **noisier** level, as DDIM would. x' is on both sides: the first guess is x, and each
iteration puts the last one in. Nothing divides by the noise of the level that is left, so that a clean level is a good
place to begin: its noise is not known and not needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldmkit.denoiser import Denoise
from ldmkit.noise import NoiseSource
from ldmkit.process import Level, Levels, log_snr
from ldmkit.samplers.contract import AtStop


def reverse(levels: Levels) -> Levels:
    """The same levels, last to first: the way up for an inversion, whose landing is the start of the way down."""
    return Levels(levels.process, levels.stops[::-1])


@dataclass(frozen=True)
class DDIMInversion:
    """DDIM (eta = 0) backwards, order 1; N steps cost N * iterations evaluations.

    It climbs: its levels are ``reverse(levels)`` of the ones that DDIM will come down. It may leave a clean level. The
    step that lands on pure noise, where x0 does not depend on the noise, is solved for x' with the noise of x itself.

    One iteration is the inversion as published. Then DDIM comes back to the latent up to an error that falls as 1 / N;
    each further iteration raises that by one power of N, and enough of them give the latent back to rounding. Guidance
    with a scale above 1 makes the network change faster with x: invert without it, or with more iterations.

    Args:
        iterations: of the fixed point in each step, at least 1.

    Raises:
        ValueError: fewer iterations; in a call, levels whose noise does not rise, or one step from a clean level to
            pure noise.

    Source: Song et al. 2021, section 4.3, with eq. 12 at eta = 0; Pan et al. 2023 (AIDI) for the iterations.
    """

    iterations: int = 1

    order = 1
    stochastic = False

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"sampler 'ddim-inversion' needs iterations >= 1, got {self.iterations}")

    def check(self, levels: Levels) -> None:
        """Refuse levels that this sampler cannot follow, as a call would."""
        if any(log_snr(nxt) >= log_snr(now) for now, nxt in levels.steps()):
            raise ValueError(
                "sampler 'ddim-inversion' climbs from a clean latent to noise, which needs levels whose noise rises: "
                "ldmkit.samplers.reverse(levels) of the ones to come down"
            )
        if len(levels) == 1 and levels.start.sigma == 0 and levels.landing.alpha == 0:
            raise ValueError(
                "sampler 'ddim-inversion' cannot go from a clean level to pure noise in one step, which would keep "
                "nothing of the latent: give it a stop between them"
            )

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, noise: NoiseSource, at_stop: AtStop | None = None
    ) -> Tensor:
        """Invert; see :class:`ldmkit.samplers.Sampler`. ``noise`` is not drawn.

        Raises:
            ValueError: levels whose noise does not rise, or one step from a clean level to pure noise.
        """
        self.check(levels)
        plan = [(now, nxt, *_climb(now, nxt)) for now, nxt in levels.steps()]
        for now, nxt, keep, again, toward in plan:
            if at_stop is not None:
                x = at_stop(x, now)
            here = x * keep
            for _ in range(self.iterations):
                x0 = denoise(x, nxt)
                x = here.add(x, alpha=again).add_(x0, alpha=toward)
        return x


def _climb(now: Level[float], nxt: Level[float]) -> tuple[float, float, float]:
    """(factor of x, of the last guess, of x0 at it)."""
    if nxt.alpha == 0:
        keep = nxt.sigma / now.sigma
        return keep, 0.0, -keep * now.alpha
    keep = nxt.alpha / now.alpha
    share = 1 - keep * now.sigma / nxt.sigma
    return keep, share, -share * nxt.alpha
