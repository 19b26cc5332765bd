"""Checks of processes: noise grows with time, time is its inverse, and training times lie where levels are."""

from __future__ import annotations

import copy
import math
from dataclasses import FrozenInstanceError
from itertools import pairwise

import torch
from torch import Tensor

from ldmkit.process import Level, Levels, Process, log_snr
from ldmkit.testing.case import Case
from ldmkit.testing.check import Check, CheckFailed, check, require
from ldmkit.testing.surroundings import restored

TIMES = 64
COUNTS = (1, 2, 3, 10, 50)


def times(process: Process, count: int = TIMES) -> list[float]:
    """Even times over the whole range, fractions among them."""
    width = process.t_max - process.t_min
    return [process.t_min + width * i / count for i in range(count)] + [process.t_max]


@check("runs")
def levels_are_finite(case: Case) -> None:
    """Over its whole range alpha lies in [0, 1] and sigma is finite and not negative, and never are both 0."""
    process: Process = case.component()
    require(process.t_min < process.t_max, f"t_min {process.t_min} is not below t_max {process.t_max}")
    for t in times(process):
        level = process.level(t)
        fine = 0 <= level.alpha <= 1 and 0 <= level.sigma < math.inf and level.alpha + level.sigma > 0
        require(fine and level.t == t, f"level({t:g}) is {level}")


@check("levels-are-finite")
def noise_grows_with_time(case: Case) -> None:
    """Log-SNR falls strictly with time, alpha never grows and sigma never falls."""
    process: Process = case.component()
    levels = [process.level(t) for t in times(process)]
    for now, nxt in pairwise(levels):
        monotone = log_snr(nxt) < log_snr(now) and nxt.alpha <= now.alpha and nxt.sigma >= now.sigma
        require(monotone, f"from {now} to {nxt} the noise does not grow")


@check("levels-are-finite")
def clean_level_has_no_noise(case: Case) -> None:
    """``clean`` has sigma 0, some alpha, and a time that a network can be told."""
    process: Process = case.component()
    clean = process.clean
    require(clean.sigma == 0 and clean.alpha > 0 and math.isfinite(clean.t), f"its clean level is {clean}")


@check("noise-grows-with-time")
def time_inverts_log_snr(case: Case) -> None:
    """``time(log_snr)`` gives back the time of a level."""
    process: Process = case.component()
    width = process.t_max - process.t_min
    for t in times(process):
        ratio = log_snr(process.level(t))
        if math.isfinite(ratio):
            back = process.time(ratio)
            require(abs(back - t) <= 1e-5 * width, f"level({t:g}) has log-SNR {ratio:g}, whose time is {back:g}")


@check("time-inverts-log-snr")
def time_is_clamped(case: Case) -> None:
    """Cleaner than the first level is ``t_min``, noisier than the last ``t_max``, infinities included."""
    process: Process = case.component()
    slack = 1e-6 * (process.t_max - process.t_min)
    for ratio, end in (
        (math.inf, process.t_min),
        (1e4, process.t_min),
        (-1e4, process.t_max),
        (-math.inf, process.t_max),
    ):
        got = process.time(ratio)
        require(abs(got - end) <= slack, f"time({ratio:g}) is {got:g}, not {end:g}")


@check("levels-are-finite")
def levels_per_sample_equal_floats(case: Case) -> None:
    """``level`` of a tensor (B,) gives float32 (B, 1, 1, 1) that equal the levels of its entries."""
    process: Process = case.component()
    asked = times(process, 8)
    _require_level_per_sample(process, torch.tensor(asked))
    if process.table is not None:
        whole = torch.arange(0, process.table, max(1, process.table // 8))
        _require_level_per_sample(process, whole)


def _require_level_per_sample(process: Process, t: Tensor) -> None:
    level = process.level(t)
    for name, value in (("alpha", level.alpha), ("sigma", level.sigma)):
        right = value.shape == (len(t), 1, 1, 1) and value.dtype == torch.float32
        require(right, f"{name} of {len(t)} samples is {value.dtype} {tuple(value.shape)}")
        # A float32 time is not exactly the float that it stands for.
        want = torch.tensor([getattr(process.level(float(x)), name) for x in t]).view_as(value)
        off = float((value - want).abs().max() / want.abs().max())
        require(off < 1e-5, f"{name} per sample differs from that of floats by {off:.3g}")
    require(level.t.shape == t.shape, f"t of {len(t)} samples is {tuple(level.t.shape)}")


@check("noise-grows-with-time")
def levels_are_as_many_as_asked(case: Case) -> None:
    """``levels(n)`` has exactly n steps for any n, all on this process and each with less noise than before."""
    process: Process = case.component()
    for n in COUNTS:
        levels = process.levels(n)
        require(len(levels) == n, f"levels({n}) has {len(levels)} steps")
        require(levels.process == process, f"levels({n}) belongs to {levels.process}")
        require(levels.falling, f"levels({n}) has a step that does not remove noise: {_ts(levels)}")


@check("levels-are-as-many-as-asked")
def no_steps_are_refused(case: Case) -> None:
    """Zero steps, and fewer, are refused."""
    process: Process = case.component()
    for n in (0, -1):
        try:
            levels = process.levels(n)
        except ValueError:
            continue
        raise CheckFailed(f"levels({n}) gives {_ts(levels)}")


def _ts(levels: Levels) -> list[float]:
    return [level.t for level in levels.stops]


@check("runs")
def training_times_lie_in_its_range(case: Case) -> None:
    """``draw`` gives times in [t_min, t_max]; of a table, its integers from first to last."""
    process: Process = case.component()
    t = _drawn(process)
    low, high = float(t.min()), float(t.max())
    slack = 1e-6 * (process.t_max - process.t_min)
    require(
        process.t_min - slack <= low and high <= process.t_max + slack,
        f"training times reach from {low:g} to {high:g}, outside its range from {process.t_min:g} to {process.t_max:g}",
    )
    if process.table is not None:
        require(t.dtype == torch.int64, f"times of a table are int64 indices, got {t.dtype}")
        require(
            (low, high) == (0, process.table - 1), f"indices from {low:g} to {high:g} of a table of {process.table}"
        )


@check("runs")
def training_times_are_quantiles(case: Case) -> None:
    """``draw`` gives one time per quantile, never falling with it."""
    process: Process = case.component()
    t = _drawn(process).double()
    require(t.shape == (len(_quantiles()),), f"{len(_quantiles())} quantiles give times of shape {tuple(t.shape)}")
    require(bool((t.diff() >= 0).all()) and bool(t[-1] > t[0]), "a larger quantile gives an earlier time")


def _quantiles() -> Tensor:
    return torch.linspace(0, 1 - 2**-24, 4097)


def _drawn(process: Process) -> Tensor:
    with restored(0):
        return process.draw(_quantiles())


@check("levels-are-finite")
def input_scale_is_positive(case: Case) -> None:
    """The factor on the network's input is positive and finite, for a sample as for a float."""
    process: Process = case.component()
    for t in times(process, 8):
        level: Level[float] = process.level(t)
        scale = float(process.input_scale(level))
        require(0 < scale < math.inf, f"the input scale at t = {t:g} is {scale:g}")
        single = float(process.input_scale(process.level(torch.tensor([t]))))
        require(math.isclose(scale, single, rel_tol=1e-4), f"at t = {t:g} it is {scale:g}, per sample {single:g}")


@check("runs")
def is_a_value(case: Case) -> None:
    """It is frozen, hashable, and equal to another with the same options: levels carry their process."""
    process: Process = case.component()
    again: Process = case.component()
    require(process == again and hash(process) == hash(again), "two that are built alike are not equal, or hash apart")
    require(copy.deepcopy(process) == process, "a copy is not equal")
    name = next(iter(vars(process)), "anything")
    try:
        setattr(process, name, None)
    except (FrozenInstanceError, AttributeError, TypeError):
        return
    raise CheckFailed(f"its attribute '{name}' can be set: make it a frozen dataclass")


@check("levels-are-finite")
def default_device_does_not_matter(case: Case) -> None:
    """It answers where torch's default device is ``meta``, as it is where a model is laid out without memory."""
    process: Process = case.component()
    expected = [process.level(t) for t in times(process, 4)]
    with torch.device("meta"):
        elsewhere: Process = case.component()
        got = [elsewhere.level(t) for t in times(elsewhere, 4)]
    require(got == expected, f"its levels are {got} and not {expected}")


CHECKS: tuple[Check, ...] = (
    levels_are_finite,
    noise_grows_with_time,
    clean_level_has_no_noise,
    time_inverts_log_snr,
    time_is_clamped,
    levels_per_sample_equal_floats,
    levels_are_as_many_as_asked,
    no_steps_are_refused,
    training_times_lie_in_its_range,
    training_times_are_quantiles,
    input_scale_is_positive,
    is_a_value,
    default_device_does_not_matter,
)
