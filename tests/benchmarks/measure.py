"""Times taken side by side, and the tables that show them.

Contenders run in turn, round after round, so that what else the machine does falls on all of them; the ratio of two is
the median over the rounds of their ratio within one round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import torch
from torch import Tensor

Call = Callable[[], object]
Times = Mapping[str, Sequence[float]]
"""Contender -> seconds of each round."""


@dataclass(frozen=True)
class Setting:
    """What all benchmarks of one run have in common.

    Args:
        device: where the networks live.
        dtype: their precision.
        size: ``small`` (seconds, for tests), ``normal``, or ``large``, which adds what takes minutes on a CPU.
        rounds: how often each contender is timed, after warming up.
        opponent: measure diffusers too.
        compiles: add compiled contenders.
        switches: the process runs with the switches that act on all of it.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    size: str = "normal"
    rounds: int = 3
    opponent: bool = True
    compiles: bool = False
    switches: bool = False

    @property
    def precision(self) -> str:
        """The dtype's name."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def label(self) -> str:
        """Device, precision and switches, for titles."""
        return f"{self.device}, {self.precision}{', switches on' if self.switches else ''}"

    @property
    def cpu_time(self) -> bool:
        """Whether the clock is the process's CPU time: then other work on the machine is not counted."""
        return self.device.type == "cpu" and torch.get_num_threads() == 1


@dataclass(frozen=True)
class Table:
    """A title, aligned columns, and what a reader must know beside them.

    Args:
        title: what was measured.
        columns: headings of the numbers.
        rows: contender -> its numbers; None where it has none.
        notes: printed below, one line each.
    """

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[float | None]]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        cells = [["", *self.columns], *([name, *map(_number, row)] for name, row in self.rows.items())]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in cells
        ]
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in lines), *(f"  {n}" for n in self.notes)])


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def interleaved(contenders: Mapping[str, Call], setting: Setting, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every contender in every round; the one that begins changes from round to round.

    Args:
        contenders: name -> what to time.
        setting: device, clock and number of rounds.
        warm_up: untimed calls of each, which compile and fill caches.
    """
    for call in contenders.values():
        for _ in range(warm_up):
            call()
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(setting.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(contenders[name], setting))
    return times


def seconds(call: Call, setting: Setting) -> float:
    """One call: CPU time where that is the clock, otherwise wall time until the device is done."""
    clock = time.process_time if setting.cpu_time else time.perf_counter
    synchronize(setting.device)
    start = clock()
    call()
    synchronize(setting.device)
    return clock() - start


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator; a CPU is done when the call returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def comparison(
    title: str,
    times: Times,
    baseline: str,
    unit: float = 1e-3,
    unit_name: str = "ms",
    errors: Mapping[str, float] | None = None,
    notes: Iterable[str] = (),
) -> Table:
    """Medians, fastest rounds, and how many times faster than the baseline each contender is.

    Args:
        title: what was measured.
        times: contender -> seconds per round.
        baseline: the contender that has ratio 1; the first one where it was not measured.
        unit: seconds per unit of the table.
        unit_name: its name.
        errors: contender -> relative error of its result against the baseline's.
        notes: lines below the table.
    """
    base = baseline if baseline in times else next(iter(times))
    columns = (f"median {unit_name}", f"fastest {unit_name}", f"x {base}")
    rows: dict[str, list[float | None]] = {
        name: [median(own) / unit, min(own) / unit, median(b / o for b, o in zip(times[base], own, strict=True))]
        for name, own in times.items()
    }
    if errors is not None:
        columns = (*columns, "rel. error")
        for name, row in rows.items():
            row.append(errors.get(name))
    return Table(title, columns, rows, tuple(notes))


def relative_error(value: Tensor, reference: Tensor) -> float:
    """max |a - b| / max |b|."""
    reference = reference.float()
    return float((value.float() - reference).abs().max() / reference.abs().max())


def installed(distribution: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


ABSENT = "diffusers was not measured: it is not installed (pip install 'ldmkit[bench]') or --alone was given"
"""The note of every table that could hold diffusers and does not."""


def absent(setting: Setting) -> tuple[str, ...]:
    """The note that diffusers is missing from a table, where it is."""
    return () if setting.opponent else (ABSENT,)
