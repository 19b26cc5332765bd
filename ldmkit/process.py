r"""The forward process a network was trained on, and the levels at which a sampler stops.

A :class:`Process` maps a time to a :class:`Level`, the pair of

.. math:: x_t = \alpha_t x_0 + \sigma_t \epsilon,

and back from the log signal-to-noise ratio :math:`\lambda = 2 \log(\alpha / \sigma)`. Time grows with noise. A
:class:`Levels` is the list of N + 1 levels of one trajectory: N stops and the level where it lands.

All tables are computed in float64 on the CPU and leave this module as Python floats (one level for all samples) or
float32 tensors (one per sample, in training). There are no networks here and nothing is drawn at random.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from operator import neg
from typing import Generic, Protocol, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class Level(Generic[Number]):
    """How noisy: ``x_t = alpha * x0 + sigma * eps``.

    ``Level[float]`` holds for a whole batch. ``Level[Tensor]`` has one entry per sample: ``t`` of shape (B,), ``alpha``
    and ``sigma`` of shape (B, 1, 1, 1), float32.

    Args:
        t: time, as the network is told.
        alpha: factor of the clean sample, in [0, 1].
        sigma: factor of the noise, at least 0.
    """

    t: Number
    alpha: Number
    sigma: Number


def log_snr(level: Level[float]) -> float:
    """``2 log(alpha / sigma)``: inf at a clean level, -inf at pure noise."""
    if level.sigma == 0:
        return math.inf
    return 2 * math.log(level.alpha / level.sigma) if level.alpha else -math.inf


@runtime_checkable
class Process(Protocol):
    """A forward process, ``t -> (alpha, sigma)``, and its inverse.

    ``t_min`` and ``t_max`` bound the times of its lists of levels (training may draw beyond them); ``table`` is their
    number where they are a table of integers 0 ... table - 1, and None for a continuous process. ``clean`` is the level
    without noise.
    """

    @property
    def t_min(self) -> float: ...
    @property
    def t_max(self) -> float: ...
    @property
    def table(self) -> int | None: ...
    @property
    def clean(self) -> Level[float]: ...

    @overload
    def level(self, t: float) -> Level[float]: ...
    @overload
    def level(self, t: Tensor) -> Level[Tensor]: ...

    def time(self, log_snr: float) -> float:
        """The time with this log-SNR, clamped to [t_min, t_max]."""

    def draw(self, u: Tensor) -> Tensor:
        """Training times (B,) as the quantiles u (B,) in [0, 1) of the distribution the process trains on."""

    def input_scale(self, level: Level[Number]) -> Number | float:
        """The factor on x before the network sees it."""

    def levels(self, n: int) -> Levels:
        """The customary list of n steps for this process."""


def _linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")


def _scaled_linear(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64, device="cpu") ** 2


def _sqrt(steps: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu") ** 0.5


def _cosine(steps: int) -> Tensor:
    offset = 8e-3
    t = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps + offset
    alpha_bar = torch.cos(t / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, 0.999)


BETAS: Mapping[str, Callable[[int, float, float], Tensor]] = {
    "scaled-linear": _scaled_linear,
    "linear": _linear,
    "sqrt": _sqrt,
}


def _angle(log_snr: float) -> float:
    """``atan(sigma / alpha)``, finite everywhere."""
    return math.atan(math.exp(-log_snr / 2)) if log_snr > -1400 else math.pi / 2


@dataclass(frozen=True)
class VP:
    r"""The discrete variance-preserving process, ``alpha_bar = alpha**2 = prod(1 - beta)``.

    Integer times index the table; between them the log-SNR is linear in t (next to alpha = 0, where it is infinite, the
    angle ``atan(sigma / alpha)``). The original calls ``scaled-linear`` "linear", and ``linear`` "sqrt_linear".

    Args:
        betas: ``scaled-linear`` (linear in sqrt(beta)), ``linear``, ``sqrt`` or ``cosine``.
        steps: T, the number of training times; t runs over 0 ... T - 1.
        start: the first beta. None: 0.0015, as most models of the paper; ``cosine`` takes none.
        end: the last beta. None: 0.0195; ``cosine`` takes none.
        zero_terminal_snr: rescale the table so that alpha is 0 at T - 1 (Lin et al. 2024, Algorithm 1).

    Raises:
        ValueError: an unknown table, fewer than 2 steps, betas outside (0, 1), or start / end with ``cosine``.

    Source: Rombach et al. 2022, appendix B; Ho et al. 2020, section 2; Nichol and Dhariwal 2021, eq. 17 (cosine).
    """

    betas: str = "scaled-linear"
    steps: int = 1000
    start: float | None = None
    end: float | None = None
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.betas not in (*BETAS, "cosine"):
            raise ValueError(f"process 'vp' knows the beta tables {[*BETAS, 'cosine']}, got {self.betas!r}")
        if self.steps < 2:
            raise ValueError(f"process 'vp' needs at least 2 steps, got {self.steps}")
        if self.betas == "cosine" and (self.start is not None or self.end is not None):
            raise ValueError("process 'vp' with betas='cosine' has no start and end: leave them out")
        for name, beta in (("start", self.start), ("end", self.end)):
            if beta is not None and not 0 < beta < 1:
                raise ValueError(f"process 'vp' needs 0 < {name} < 1, got {beta}")

    @cached_property
    def beta(self) -> Tensor:
        """beta_t, float64 (T,), before any rescaling to zero terminal SNR."""
        if self.betas == "cosine":
            return _cosine(self.steps)
        start = 0.0015 if self.start is None else self.start
        return BETAS[self.betas](self.steps, start, 0.0195 if self.end is None else self.end)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """alpha_bar_t = alpha_t**2, float64 (T,), falling."""
        alpha_bar = torch.cumprod(1 - self.beta, 0)
        if not self.zero_terminal_snr:
            return alpha_bar
        root = alpha_bar.sqrt()
        first, last = root[0], root[-1]
        rescaled: Tensor = ((root - last) * first / (first - last)) ** 2
        return rescaled

    @cached_property
    def _alpha_bar(self) -> list[float]:
        return self.alpha_bar.tolist()

    @cached_property
    def _log_snr(self) -> list[float]:
        return (self.alpha_bar.log() - (-self.alpha_bar).log1p()).tolist()

    @property
    def t_min(self) -> float:
        """0."""
        return 0.0

    @property
    def t_max(self) -> float:
        """T - 1."""
        return float(self.steps - 1)

    @property
    def table(self) -> int:
        """T."""
        return self.steps

    @property
    def clean(self) -> Level[float]:
        """alpha 1, sigma 0: cleaner than the first level of the table."""
        return Level(0.0, 1.0, 0.0)

    @overload
    def level(self, t: float) -> Level[float]: ...
    @overload
    def level(self, t: Tensor) -> Level[Tensor]: ...
    def level(self, t: float | Tensor) -> Level[float] | Level[Tensor]:
        """The level at t in [0, T - 1]; fractions are interpolated.

        Raises:
            ValueError: t lies outside the table (floats only: a tensor is not read back to check).
        """
        if isinstance(t, Tensor):
            return self._level_per_sample(t)
        if not 0 <= t <= self.steps - 1:
            raise ValueError(f"process 'vp' has times 0 to {self.steps - 1}, got {t}")
        index = int(t)
        if t == index:
            alpha_bar = self._alpha_bar[index]
            return Level(float(t), math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))
        low, high = self._log_snr[index], self._log_snr[index + 1]
        if math.isfinite(high):
            snr = low + (t - index) * (high - low)
            return Level(float(t), (1 + math.exp(-snr)) ** -0.5, (1 + math.exp(snr)) ** -0.5)
        angle = _angle(low) + (t - index) * (_angle(high) - _angle(low))
        return Level(float(t), math.cos(angle), math.sin(angle))

    def _level_per_sample(self, t: Tensor) -> Level[Tensor]:
        if t.is_floating_point():
            levels = [self.level(one) for one in t.tolist()]
            alpha, sigma = (t.new_tensor([getattr(one, name) for one in levels]) for name in ("alpha", "sigma"))
        else:
            alpha_bar = self.alpha_bar.to(t.device)[t]
            alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        return Level(t, alpha.float().view(-1, 1, 1, 1), sigma.float().view(-1, 1, 1, 1))

    def time(self, log_snr: float) -> float:
        """The time with this log-SNR, clamped to [0, T - 1]."""
        if log_snr >= self._log_snr[0]:
            return 0.0
        if log_snr <= self._log_snr[-1]:
            return self.t_max
        index = bisect_left(self._log_snr, -log_snr, key=neg) - 1
        low, high = self._log_snr[index], self._log_snr[index + 1]
        if math.isfinite(high):
            return index + (log_snr - low) / (high - low)
        return index + (_angle(log_snr) - _angle(low)) / (_angle(high) - _angle(low))

    def draw(self, u: Tensor) -> Tensor:
        """Uniform integers 0 ... T - 1, int64 (B,)."""
        return (u.double() * self.steps).long().clamp(max=self.steps - 1)

    def input_scale(self, level: Level[Number]) -> float:
        """1: the state already has unit variance."""
        return 1.0

    def levels(self, n: int) -> Levels:
        """:func:`uniform`, the list of the original."""
        return uniform(self, n)


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight lines from data to noise: ``alpha = 1 - t / T``, ``sigma = t / T``, t in [0, T].

    Args:
        steps: T, the time at pure noise; the unit in which networks are told the time.

    Source: Liu et al. 2022 (rectified flow); Esser et al. 2024, section 2.
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"process 'rectified-flow' needs steps >= 1, got {self.steps}")

    @property
    def t_min(self) -> float:
        """0, the clean level."""
        return 0.0

    @property
    def t_max(self) -> float:
        """T, pure noise: alpha is 0."""
        return float(self.steps)

    @property
    def table(self) -> None:
        """None: time is continuous."""
        return

    @property
    def clean(self) -> Level[float]:
        """t = 0."""
        return Level(0.0, 1.0, 0.0)

    @overload
    def level(self, t: float) -> Level[float]: ...
    @overload
    def level(self, t: Tensor) -> Level[Tensor]: ...
    def level(self, t: float | Tensor) -> Level[float] | Level[Tensor]:
        """The level at t in [0, T].

        Raises:
            ValueError: t lies outside [0, T] (floats only: a tensor is not read back to check).
        """
        if isinstance(t, Tensor):
            sigma = (t / self.steps).float().view(-1, 1, 1, 1)
            return Level(t, 1 - sigma, sigma)
        if not 0 <= t <= self.steps:
            raise ValueError(f"process 'rectified-flow' has times 0 to {self.steps}, got {t}")
        return Level(float(t), 1 - t / self.steps, t / self.steps)

    def time(self, log_snr: float) -> float:
        """``T / (1 + exp(log_snr / 2))``."""
        return self.steps / (1 + math.exp(log_snr / 2)) if log_snr < 1400 else 0.0

    def draw(self, u: Tensor) -> Tensor:
        """Uniform on [0, T), float32 (B,)."""
        return (u * self.steps).float()

    def input_scale(self, level: Level[Number]) -> float:
        """1: networks of this family see the state as it is."""
        return 1.0

    def levels(self, n: int) -> Levels:
        """:func:`linspace` from pure noise to the clean level."""
        return linspace(self, n)


@dataclass(frozen=True)
class EDM:
    """The variance-exploding process of EDM: ``alpha = 1``, sigma in [sigma_min, sigma_max], ``t = log(sigma) / 4``.

    The network sees ``x / sqrt(1 + sigma**2)``: latents have unit standard deviation, EDM's sigma_data. With the
    prediction ``v`` this is EDM's preconditioning: ``c_skip``, ``c_out`` and ``c_in`` of table 1 with F = -v.

    Args:
        sigma_min: the last noise level before the landing.
        sigma_max: the first noise level.
        log_mean: mean of log(sigma) in training.
        log_std: standard deviation of log(sigma) in training.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max, or log_std not positive.

    Source: Karras et al. 2022, table 1 and section 5.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    log_mean: float = -1.2
    log_std: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"process 'edm' needs 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}")
        if self.log_std <= 0:
            raise ValueError(f"process 'edm' needs log_std > 0, got {self.log_std}")

    @property
    def t_min(self) -> float:
        """log(sigma_min) / 4."""
        return math.log(self.sigma_min) / 4

    @property
    def t_max(self) -> float:
        """log(sigma_max) / 4."""
        return math.log(self.sigma_max) / 4

    @property
    def table(self) -> None:
        """None: time is continuous."""
        return

    @property
    def clean(self) -> Level[float]:
        """sigma 0, told to a network as sigma_min."""
        return Level(self.t_min, 1.0, 0.0)

    @overload
    def level(self, t: float) -> Level[float]: ...
    @overload
    def level(self, t: Tensor) -> Level[Tensor]: ...
    def level(self, t: float | Tensor) -> Level[float] | Level[Tensor]:
        """``sigma = exp(4 t)``, any t: training draws beyond [sigma_min, sigma_max] are part of the method."""
        if isinstance(t, Tensor):
            sigma = torch.exp(4 * t.double()).float().view(-1, 1, 1, 1)
            return Level(t, torch.ones_like(sigma), sigma)
        return Level(float(t), 1.0, math.exp(4 * t))

    def time(self, log_snr: float) -> float:
        """``-log_snr / 8``, clamped to [t_min, t_max]."""
        return min(max(-log_snr / 8, self.t_min), self.t_max)

    def draw(self, u: Tensor) -> Tensor:
        """``log(sigma) ~ N(log_mean, log_std**2)``, float32 (B,)."""
        normal = math.sqrt(2) * torch.erfinv((2 * u.double() - 1).clamp(-1 + 1e-12, 1 - 1e-12))
        return ((self.log_mean + self.log_std * normal) / 4).float()

    def input_scale(self, level: Level[Number]) -> Number:
        """``1 / sqrt(1 + sigma**2)``."""
        scale: Number = (1 + level.sigma**2) ** -0.5
        return scale

    def levels(self, n: int) -> Levels:
        """:func:`karras` with rho = 7."""
        return karras(self, n)


@dataclass(frozen=True)
class Levels:
    """The levels of one trajectory: N stops at which the denoiser is asked, then the level where it lands.

    img2img and resuming are slices: ``levels[k:]`` starts at stop k.

    Args:
        process: the process the levels belong to.
        stops: N + 1 levels; neighbours differ.

    Raises:
        ValueError: fewer than two levels, or a step that goes nowhere.
    """

    process: Process
    stops: tuple[Level[float], ...] = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.stops) < 2:
            raise ValueError(f"a trajectory needs a stop and a landing, got {len(self.stops)} level(s)")
        for now, nxt in self.steps():
            if (now.alpha, now.sigma) == (nxt.alpha, nxt.sigma):
                raise ValueError(
                    f"two neighbouring levels are equal (t = {now.t:g}): the step would go nowhere; "
                    "leave one out or choose another landing"
                )

    def __len__(self) -> int:
        """N, the number of steps."""
        return len(self.stops) - 1

    def __getitem__(self, part: slice) -> Levels:
        """The steps ``part`` of the trajectory, with the level where they end."""
        if not isinstance(part, slice):
            raise TypeError(f"levels are sliced, levels[k:]; one level is levels.stops[{part}]")
        start, stop, stride = part.indices(len(self))
        if stride != 1:
            raise ValueError(f"a slice of levels keeps every step, got stride {stride}")
        return Levels(self.process, self.stops[start : stop + 1])

    @property
    def start(self) -> Level[float]:
        """The first stop."""
        return self.stops[0]

    @property
    def landing(self) -> Level[float]:
        """Where the trajectory ends."""
        return self.stops[-1]

    @property
    def falling(self) -> bool:
        """Whether every step removes noise."""
        return all(log_snr(nxt) > log_snr(now) for now, nxt in self.steps())

    def steps(self) -> Iterator[tuple[Level[float], Level[float]]]:
        """(now, nxt) for each of the N steps."""
        return pairwise(self.stops)

    def between(self, now: Level[float], nxt: Level[float], r: float) -> Level[float]:
        """The level a share r of the way from now to nxt, in log-SNR.

        Raises:
            ValueError: one end is clean or pure noise, where log-SNR is infinite.
        """
        start, end = log_snr(now), log_snr(nxt)
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ValueError(f"there is no level between {now} and {nxt} in log-SNR: one of them is infinite")
        return self.process.level(self.process.time((1 - r) * start + r * end))


def at(process: Process, times: Sequence[float], landing: Level[float] | None = None) -> Levels:
    """Stops at explicit times, first to last.

    The original's own 13 stops for "12" are ``at(process, range(997, 0, -83))``.

    Args:
        process: gives the levels.
        times: the stops, in the order in which they are visited.
        landing: where the last step ends. None: the first level of the process's range (index 0 of a table).
    """
    landing = process.level(process.t_min) if landing is None else landing
    return Levels(process, (*(process.level(float(t)) for t in times), landing))


def uniform(process: Process, n: int, landing: Level[float] | None = None) -> Levels:
    """The original's spacing: ``floor(i T / n) + 1``, i = n - 1 ... 0, landing on **index 0** of the table.

    Equal to the original wherever it gives the count asked for (n divides T), and exactly n steps for every other n
    too. n = T leaves no room for the offset: the stops are then all T entries, and the landing is the clean level.

    Raises:
        ValueError: n outside 1 ... T, or a process without a table.

    Source: Song et al. 2021 (DDIM), as in the original's ``make_ddim_timesteps`` with its + 1.
    """
    steps = _table(process, n, "uniform")
    if n == steps:
        return leading(process, n, landing)
    return at(process, [i * steps // n + 1 for i in reversed(range(n))], landing)


def leading(process: Process, n: int, landing: Level[float] | None = None) -> Levels:
    """``floor(i T / n)``, i = n - 1 ... 0: the last stop is index 0, so it lands on the clean level.

    Raises:
        ValueError: n outside 1 ... T, or a process without a table.
    """
    steps = _table(process, n, "leading")
    return at(process, [i * steps // n for i in reversed(range(n))], landing or process.clean)


def trailing(process: Process, n: int, landing: Level[float] | None = None) -> Levels:
    """``round(T - i T / n) - 1``, i = 0 ... n - 1: starts at the noisiest level, lands on the clean one.

    A continuous process has no table to round to and gets :func:`linspace`'s even times.

    Raises:
        ValueError: n outside 1 ... T.

    Source: Lin et al. 2024, section 3.3.
    """
    if process.table is None:
        return linspace(process, n, landing)
    steps = _table(process, n, "trailing")
    return at(process, [round(steps - i * steps / n) - 1 for i in range(n)], landing or process.clean)


def linspace(process: Process, n: int, landing: Level[float] | None = None) -> Levels:
    """Even times from the noisiest level.

    With a table: n indices from T - 1 to 0, both included, landing clean. Continuous: n steps from t_max to t_min.

    Raises:
        ValueError: n < 1, or more than the table holds.
    """
    if process.table is None:
        _at_least_one(n)
        width = process.t_max - process.t_min
        return at(process, [process.t_max - width * i / n for i in range(n)], landing)
    steps = _table(process, n, "linspace")
    times = [round((steps - 1) * (n - 1 - i) / max(n - 1, 1)) for i in range(n)] if n > 1 else [steps - 1]
    return at(process, times, landing or process.clean)


def karras(process: Process, n: int, rho: float = 7.0, landing: Level[float] | None = None) -> Levels:
    """Even steps of ``(sigma / alpha)**(1 / rho)`` between the ends of the process; lands clean.

    Raises:
        ValueError: n < 1, rho <= 0, or a process that begins at pure noise, where sigma / alpha is infinite.

    Source: Karras et al. 2022, eq. 5.
    """
    _at_least_one(n)
    if rho <= 0:
        raise ValueError(f"karras levels need rho > 0, got {rho}")
    noisiest, cleanest = log_snr(process.level(process.t_max)), log_snr(process.level(process.t_min))
    if not (math.isfinite(noisiest) and math.isfinite(cleanest)):
        raise ValueError(
            f"karras levels need a finite sigma / alpha at both ends, which {type(process).__name__} does not have: "
            "use trailing or linspace"
        )
    high, low = math.exp(-noisiest / 2 / rho), math.exp(-cleanest / 2 / rho)
    ratios = [(high + i / max(n - 1, 1) * (low - high)) ** rho for i in range(n)]
    return at(process, [process.time(-2 * math.log(ratio)) for ratio in ratios], landing or process.clean)


def _at_least_one(n: int) -> None:
    if n < 1:
        raise ValueError(f"sampling takes at least 1 step, got {n}")


def _table(process: Process, n: int, name: str) -> int:
    _at_least_one(n)
    if process.table is None:
        raise ValueError(
            f"{name} levels index a table of training times, which {type(process).__name__} does not have: "
            "use trailing, linspace or karras"
        )
    if n > process.table:
        raise ValueError(f"the process has {process.table} levels, so at most {process.table} steps; got {n}")
    return process.table
