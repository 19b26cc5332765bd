r"""Diffusion of a Gaussian, where every answer is known in closed form.

For data :math:`x_0 \sim N(\mu, s^2)`, independent per element,

.. math::
    \mathbb{E}[x_0 \mid x] = \mu + \frac{\alpha s^2}{\alpha^2 s^2 + \sigma^2} (x - \alpha \mu), \qquad
    x(\alpha, \sigma) = \alpha \mu + \sqrt{\alpha^2 s^2 + \sigma^2}\; c

where c is constant along the probability-flow ODE: a sampler's exact solution, and the marginal that an ancestral
sampler must reproduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldmkit.denoiser import PREDICTIONS
from ldmkit.process import Level, Levels, Process


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, std**2), independent per element.

    Args:
        mean: mu.
        std: s > 0.
    """

    mean: float = 0.3
    std: float = 0.5

    def spread(self, level: Level[float]) -> float:
        """Standard deviation of the state at a level."""
        return math.hypot(level.alpha * self.std, level.sigma)

    def denoise(self, x: Tensor, level: Level[float]) -> Tensor:
        """E[x0 | x], the ideal denoiser."""
        gain = level.alpha * self.std**2 / self.spread(level) ** 2
        return self.mean + gain * (x - level.alpha * self.mean)

    def flow(self, x: Tensor, now: Level[float], to: Level[float]) -> Tensor:
        """The exact solution of the probability-flow ODE from ``now`` to ``to``."""
        return to.alpha * self.mean + self.spread(to) / self.spread(now) * (x - now.alpha * self.mean)


class GaussianBackbone(nn.Module):
    """The ideal network of a process and prediction for Gaussian data; its one parameter does nothing.

    Args:
        process: the process it is "trained" on.
        prediction: what it outputs.
        channels: of the state.
        data: the distribution.
    """

    multiple = 1

    def __init__(self, process: Process, prediction: str, channels: int = 1, data: Gaussian | None = None) -> None:
        super().__init__()
        self.process = process
        self.prediction = prediction
        self.channels = channels
        self.accepts: Mapping[str, int] = {}
        self.data = Gaussian() if data is None else data
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        vector: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """The exact prediction for x (B, C, H, W) at t (B,)."""
        level = self.process.level(float(t[0]))
        state = x / self.process.input_scale(level)
        x0 = self.data.denoise(state, level)
        c, d = PREDICTIONS[self.prediction].target(level)
        eps = (state - level.alpha * x0) / level.sigma if level.sigma else torch.zeros_like(x0)
        out: Tensor = c * x0 + d * eps
        return out


def convergence_order(
    solve: Callable[[Levels], float], levels: Callable[[int], Levels], counts: Sequence[int]
) -> float:
    """The measured order: minus the slope of log(error) over log(number of steps), by least squares.

    Args:
        solve: runs a solver on a list of levels and returns its error.
        levels: number of steps -> list of levels.
        counts: numbers of steps to measure.
    """
    points = [(math.log(n), math.log(solve(levels(n)))) for n in counts]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope: float = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return -slope
