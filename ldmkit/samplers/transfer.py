r"""The step that samplers are made of: exact where the estimate of x0 does not change on the way.

.. math::
    x' = \frac{\sigma'}{\sigma}\, x + \left(\alpha' - \frac{\sigma'}{\sigma} \alpha\right) x_0, \qquad
    \alpha' - \frac{\sigma'}{\sigma} \alpha = \alpha' (1 - e^{-h}), \qquad
    h = \lambda' - \lambda, \quad \lambda = \log(\alpha / \sigma)

The probability-flow ODE is linear in :math:`x / \sigma` but for :math:`x_0(x, \lambda)`; this is its exponential
integrator of first order, which is DDIM. Both coefficients are finite from pure noise (alpha = 0) and onto a clean
level (sigma' = 0, where x' = x0); h is not. So a solver of higher order steps by this formula next to those two ends.
"""

from __future__ import annotations

from ldmkit.process import Level, Levels, log_snr


def transfer(now: Level[float], nxt: Level[float]) -> tuple[float, float]:
    """(factor of x, factor of x0) of the first-order step."""
    keep = nxt.sigma / now.sigma
    return keep, nxt.alpha - keep * now.alpha


def stride(now: Level[float], nxt: Level[float]) -> float:
    """h, the step in ``log(alpha / sigma)``: positive where noise falls, infinite next to clean and to pure noise."""
    return (log_snr(nxt) - log_snr(now)) / 2


def refuse_clean_stops(levels: Levels, name: str) -> None:
    """Refuse to leave a clean level.

    Raises:
        ValueError: a stop where sigma is 0.
    """
    if any(now.sigma == 0 for now, _ in levels.steps()):
        raise ValueError(
            f"sampler '{name}' cannot leave a clean level, where x0 no longer says what the noise is: start at the "
            "first level of the process, process.level(process.t_min), or invert with ddim-inversion"
        )


def refuse_rising(levels: Levels, name: str, eta: float) -> None:
    """Refuse to add fresh noise where noise does not fall.

    Raises:
        ValueError: eta > 0 and a step that does not remove noise.
    """
    if eta and not levels.falling:
        raise ValueError(f"sampler '{name}' with eta = {eta} adds noise, which needs levels whose noise falls")


def refuse_eta(eta: float, name: str) -> None:
    """Refuse a share of fresh noise that is none.

    Raises:
        ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"sampler '{name}' needs eta in [0, 1], got {eta}")
