r"""Checks of samplers on a Gaussian, where the trajectory is known: order, statistics, stops and history."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import PREDICTIONS, Denoise, Denoiser
from ldmkit.noise import Noise, NoiseSource
from ldmkit.process import VP, Level, Levels, RectifiedFlow, at, trailing
from ldmkit.samplers.contract import AtStop, Checking, Sampler
from ldmkit.testing.case import Case
from ldmkit.testing.check import Check, CheckFailed, check, not_applicable, require
from ldmkit.testing.gaussian import GaussianBackbone, convergence_order
from ldmkit.testing.surroundings import restored
from ldmkit.testing.use import DATA, way
from ldmkit.testing.values import distance

COUNTS = (1, 2, 3, 10)
ORDER_SLACK = 0.2
"""By how much the measured order may fall short of the one declared."""


@runtime_checkable
class Ordered(Protocol):
    """A sampler that says how fast it converges where it draws no noise."""

    @property
    def order(self) -> int: ...


def start(levels: Levels, shape: tuple[int, ...] = (2, 1, 4, 4), seed: int = 7) -> Tensor:
    """The state at the first level, in float64."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return levels.start.alpha * DATA.mean + DATA.spread(levels.start) * x


def sample(
    sampler: Sampler,
    levels: Levels,
    x: Tensor | None = None,
    denoise: Denoise = DATA.denoise,
    noise: NoiseSource | None = None,
    at_stop: AtStop | None = None,
) -> Tensor:
    """One run in known surroundings."""
    x = start(levels) if x is None else x
    with restored(0), torch.no_grad():
        return sampler(denoise, x, levels, noise or Noise(tuple(range(len(x)))), at_stop)


@check("runs")
def keeps_shape_and_precision(case: Case) -> None:
    """The result has the shape and the precision of the state."""
    sampler: Sampler = case.component()
    levels = way(sampler, VP().levels(3))
    for dtype in (torch.float32, torch.float64):
        x = start(levels, (2, 3, 4, 6)).to(dtype)
        got = sample(sampler, levels, x)
        require(got.shape == x.shape and got.dtype == dtype, f"{_of(x)} becomes {_of(got)}")


@check("runs")
def stops_once_at_each_level(case: Case) -> None:
    """``at_stop`` is called once at every level but the landing, in order, whatever the number of steps."""
    sampler: Sampler = case.component()
    for n in COUNTS:
        levels = way(sampler, VP().levels(n))
        seen: list[Level[float]] = []
        sample(sampler, levels, at_stop=lambda x, now, seen=seen: _remember(seen, now, x))  # type: ignore[misc]
        want = list(levels.stops[:-1])
        require(seen == want, f"for {n} steps it stops at t = {[s.t for s in seen]}, not {[s.t for s in want]}")


@check("stops-once-at-each-level")
def stops_before_each_step(case: Case) -> None:
    """At each stop ``at_stop`` comes first, with the state there; the denoiser is asked after it."""
    sampler: Sampler = case.component()
    levels = way(sampler, VP().levels(4))
    events: list[str] = []
    sample(
        sampler,
        levels,
        denoise=lambda x, level: _remember(events, "asked", DATA.denoise(x, level)),
        at_stop=lambda x, now: _remember(events, "stop", x),
    )
    line = " ".join(events)
    require(line.startswith("stop asked"), f"it begins with '{' '.join(events[:3])}'")
    require("stop stop" not in line and line.endswith("asked"), f"it makes a step without the denoiser: {line}")


@check("stops-before-each-step", "deterministic")
def goes_on_with_what_at_stop_returns(case: Case) -> None:
    """It goes on with the state that ``at_stop`` returns; one that returns the state it was given changes nothing."""
    sampler: Sampler = case.component()
    levels = way(sampler, VP().levels(4))
    plain = sample(sampler, levels)
    require(torch.equal(sample(sampler, levels, at_stop=lambda x, now: x), plain), "an at_stop that does nothing does")
    other = start(levels, seed=8)
    replaced = sample(sampler, levels, at_stop=lambda x, now: other.clone() if now == levels.start else x)
    require(torch.equal(replaced, sample(sampler, levels, other)), "it does not go on with what at_stop returned")


@check("runs")
def states_handed_out_stay_as_they_are(case: Case) -> None:
    """What it gives to ``at_stop``, and what the denoiser gave it, is not overwritten later."""
    sampler: Sampler = case.component()
    levels = way(sampler, VP().levels(5))
    handed: list[tuple[str, Tensor, Tensor]] = []

    def denoise(x: Tensor, level: Level[float]) -> Tensor:
        x0 = DATA.denoise(x, level)
        handed.extend((("a state given to the denoiser", x, x.clone()), ("an estimate of x0", x0, x0.clone())))
        return x0

    sample(sampler, levels, denoise=denoise, at_stop=lambda x, now: _remember(handed, ("a state", x, x.clone()), x))
    for what, kept, copy in handed:
        require(torch.equal(kept, copy), f"{what} was overwritten")


@check("deterministic")
def noise_is_drawn_once_per_level(case: Case) -> None:
    """It draws noise of the state's shape, at levels of its list, and at none twice: that would be the same noise."""
    sampler: Sampler = case.component()
    levels = way(sampler, VP().levels(10))
    asked: list[float] = []
    shapes: set[tuple[int, ...]] = set()

    def noise(like: Tensor, stop: Level[float]) -> Tensor:
        shapes.add(tuple(like.shape))
        return _remember(asked, stop.t, Noise((0, 1))(like, stop))

    x = start(levels)
    sample(sampler, levels, x, noise=noise)
    if not asked:
        not_applicable("it draws no noise")
    require(len(set(asked)) == len(asked), f"it draws twice at t = {sorted(t for t in asked if asked.count(t) > 1)}")
    require(shapes == {tuple(x.shape)}, f"it asks for noise of the shapes {sorted(shapes)}")
    strange = set(asked) - {level.t for level in levels.stops}
    require(not strange, f"it draws at t = {sorted(strange)}, which are not in its list of levels")


@check("deterministic")
def says_whether_it_draws_noise(case: Case) -> None:
    """It draws noise where ``stochastic`` is true and never where it is false."""
    sampler: Sampler = case.component()
    stochastic = _checking(sampler).stochastic
    drawn: list[Level[float]] = []
    levels = way(sampler, VP().levels(10))
    sample(sampler, levels, noise=lambda like, stop: _remember(drawn, stop, Noise((0, 1))(like, stop)))
    says = "draws noise" if stochastic else "draws none"
    require(bool(drawn) == stochastic, f"it says that it {says}, and draws {len(drawn)} times in 10 steps")


@check("runs")
def refuses_levels_before_it_begins(case: Case) -> None:
    """What ``check(levels)`` refuses a call refuses too, before the denoiser is asked; and nothing else."""
    sampler: Sampler = case.component()
    checking = _checking(sampler)
    vp, flow = VP(), RectifiedFlow()
    lists = {
        "falling levels": vp.levels(4),
        "rising levels": at(vp, [100, 200], landing=vp.level(300.0)),
        "levels from a clean one": at(flow, [0.0], landing=flow.level(10.0)),
        "levels from pure noise": flow.levels(3),
    }
    for what, levels in lists.items():
        asked: list[Level[float]] = []

        def denoise(x: Tensor, level: Level[float], asked: list[Level[float]] = asked) -> Tensor:
            return _remember(asked, level, DATA.denoise(x, level))

        said = _refuses(partial(checking.check, levels))
        done = _refuses(partial(sample, sampler, levels, denoise=denoise))
        require(said == done, f"check {_verb(said)} {what}, and a call {_verb(done)} them")
        require(not (done and asked), f"a call refuses {what} after the denoiser was asked")


def _checking(sampler: Sampler) -> Checking:
    if not isinstance(sampler, Checking):
        not_applicable("it has no 'stochastic' and 'check'")
    return cast(Checking, sampler)


def _refuses(function: Callable[[], object]) -> bool:
    try:
        function()
    except ValueError:
        return True
    return False


def _verb(refuses: bool) -> str:
    return "refuses" if refuses else "takes"


@check("stops-once-at-each-level", "deterministic", "says-whether-it-draws-noise")
def has_the_order_it_declares(case: Case) -> None:
    """On a Gaussian its error falls with the number of steps at least as fast as its ``order`` says, without noise."""
    sampler: Sampler = case.component()
    if isinstance(sampler, Checking) and sampler.stochastic:
        not_applicable("it says that it draws noise: an order is that of a sampler without")
    order = _order(sampler)

    def error(levels: Levels) -> float:
        got = sample(sampler, levels, noise=_no_noise)
        return float((got - DATA.flow(start(levels), levels.start, levels.landing)).abs().max())

    counts = (64, 128, 256, 512) if order <= 3 else (16, 32, 64, 128)
    measured = convergence_order(error, lambda n: way(sampler, _even_times(n)), counts)
    require(measured > order - ORDER_SLACK, f"it declares order {order} and converges with order {measured:.2f}")


def _order(sampler: Sampler) -> int:
    if not isinstance(sampler, Ordered):
        not_applicable("it declares no order")
    return cast(Ordered, sampler).order


def _even_times(n: int) -> Levels:
    """Even fractional times from 900 to 100: no rounding to the table, both ends away from the limits."""
    process = VP()
    return at(process, [900 - 800 * i / n for i in range(n)], landing=process.level(100.0))


def _no_noise(like: Tensor, stop: Level[float]) -> Tensor:
    raise CheckFailed(f"it declares an order and draws noise, at t = {stop.t:g}")


@check("stops-once-at-each-level", "deterministic", "noise-is-drawn-once-per-level")
def ends_in_the_distribution_of_the_data(case: Case) -> None:
    """From the right distribution at the first level it comes to the mean and variance of the data."""
    sampler: Sampler = case.component()
    levels = way(sampler, trailing(VP(), 250))
    x = start(levels, (16, 1, 32, 32))
    generator = torch.Generator().manual_seed(3)
    got = sample(
        sampler, levels, x, noise=lambda like, stop: torch.randn(like.shape, dtype=like.dtype, generator=generator)
    )
    right, spread = levels.landing.alpha * DATA.mean, DATA.spread(levels.landing)
    error = spread / math.sqrt(got.numel())
    mean, std = float(got.mean()), float(got.std())
    require(abs(mean - right) < 4 * error + 0.005, f"the mean is {mean:.3f}, that of the data {right:.3f}")
    slack = 4 * error / math.sqrt(2) + 0.01 * spread
    require(abs(std - spread) < slack, f"the standard deviation is {std:.3f}, that of the data {spread:.3f}")


@check("runs", "deterministic")
def predictions_lead_the_same_way(case: Case) -> None:
    """Networks that predict eps, v, x0 and flow lead to the same result."""
    sampler: Sampler = case.component()
    levels = way(sampler, trailing(VP(), 10))
    results = {}
    for prediction in PREDICTIONS:
        with restored(0):
            denoiser = Denoiser(GaussianBackbone(VP(), prediction, data=DATA), VP(), prediction)
        results[prediction] = sample(sampler, levels, denoise=denoiser.bind(Conditioning(), levels))
    for prediction, result in results.items():
        off = distance(result, results["x0"])
        require(off < 1e-6, f"a network that predicts {prediction} leads elsewhere than one of x0, by {off:.3g}")


@check("deterministic", "goes-on-with-what-at-stop-returns")
def a_slice_continues_the_trajectory(case: Case) -> None:
    """Stopping at a level and going on from there is the same as not stopping."""
    sampler: Sampler = case.component()
    if not case.example.single_step:
        not_applicable("the example says that a step depends on those before it")
    levels = way(sampler, trailing(VP(), 10))
    whole = sample(sampler, levels)
    half = sample(sampler, levels[:4])
    require(torch.equal(sample(sampler, levels[4:], half), whole), "after a pause at the fifth stop it goes elsewhere")


@check("runs")
def pure_noise_is_finite_or_refused(case: Case) -> None:
    """From pure noise, where alpha is 0, it stays finite or says that it cannot start there."""
    sampler: Sampler = case.component()
    levels = way(sampler, RectifiedFlow().levels(5))
    try:
        got = sample(sampler, levels)
    except ValueError:
        return
    require(bool(got.isfinite().all()), "from alpha = 0 it comes to values that are not finite")


def _remember(events: list[Any], event: object, result: Tensor) -> Tensor:
    events.append(event)
    return result


def _of(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}"


CHECKS: tuple[Check, ...] = (
    keeps_shape_and_precision,
    stops_once_at_each_level,
    stops_before_each_step,
    goes_on_with_what_at_stop_returns,
    states_handed_out_stay_as_they_are,
    noise_is_drawn_once_per_level,
    says_whether_it_draws_noise,
    refuses_levels_before_it_begins,
    has_the_order_it_declares,
    ends_in_the_distribution_of_the_data,
    predictions_lead_the_same_way,
    a_slice_continues_the_trajectory,
    pure_noise_is_finite_or_refused,
)
