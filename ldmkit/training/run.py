"""How a run is to go, and how far it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ldmkit.training.log import Watch
from ldmkit.training.optim import AdamW, Optimizing, Rate
from ldmkit.training.parallel import Spread, replicated
from ldmkit.training.power_ema import PowerProfile


@dataclass(frozen=True)
class Run:
    """How to train.

    Args:
        out: folder of the states, the log, the pictures and the result; made if it is not there.
        steps: optimizer steps of the whole run.
        batch: samples of a step, over all processes.
        rate: the learning rate of each step: :func:`ldmkit.training.optim.constant`, ``cosine``, or any function.
        accumulate: parts a process takes its share of a batch in, one after the other.
        clip: largest norm of a phase's gradient; None: no limit.
        ema: decay of the averaged weights; None: no averages, and the last weights are exported.
        profile: keep snapshots from which :func:`ldmkit.training.power_ema.reconstruct` makes averages of any length
            afterwards; None: none.
        precision: of the arithmetic, float32 or bfloat16 (autocast); weights, moments and averages are as they are.
        seed: of the order of the samples and of everything drawn.
        workers: processes that load data, for each process that trains.
        save_every: steps between states.
        log_every: steps between lines of the log.
        show_every: steps between pictures.
        max_skipped: steps in a row that may be skipped because the loss or its gradient is not finite.
        optimizer: makes a phase's optimizer.
        spread: how a module is spread over processes: ``replicated`` or ``Sharded(...)``.
        watch: told every line of the log, such as a :class:`ldmkit.training.log.TensorBoard`.
        progress: show a bar.

    Raises:
        ValueError: a number below 1 where steps or samples are counted, or another precision.
    """

    out: str | os.PathLike[str]
    steps: int
    batch: int
    rate: Rate
    accumulate: int = 1
    clip: float | None = 1.0
    ema: float | None = 0.9999
    profile: PowerProfile | None = None
    precision: torch.dtype = torch.float32
    seed: int = 0
    workers: int = 0
    save_every: int = 1000
    log_every: int = 50
    show_every: int = 1000
    max_skipped: int = 10
    optimizer: Optimizing = field(default_factory=AdamW)
    spread: Spread = replicated
    watch: Sequence[Watch] = ()
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "log_every", "show_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"precision must be torch.float32 or torch.bfloat16, got {self.precision}: float16 would need its loss "
                "scaled"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"a seed must lie in [0, 2**64), got {self.seed}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is the largest norm of a gradient and positive, or None, got {self.clip}")


@dataclass
class Progress:
    """The numbers of a run that change: plain data, equal in every process.

    Args:
        step: steps done.
        skipped: of them, steps in which some phase was not applied.
        in_a_row: skipped steps since the last that was not.
        lost: sum of each phase's losses since the last line of the log.
        norms: largest norm of each phase's gradient since then.
        clipped: of them, steps in which the gradient was above its limit.
        applied: steps that these are of, by phase.
    """

    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    lost: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    clipped: dict[str, int] = field(default_factory=dict)
    applied: dict[str, int] = field(default_factory=dict)

    def count(self, phase: str, loss: float, norm: float, clip: float | None) -> None:
        """Take the numbers of one applied phase, and the limit of its gradient."""
        self.lost[phase] = self.lost.get(phase, 0.0) + loss
        self.norms[phase] = max(self.norms.get(phase, 0.0), norm)
        if clip is not None:
            self.clipped[phase] = self.clipped.get(phase, 0) + (norm > clip)
        self.applied[phase] = self.applied.get(phase, 0) + 1

    def line(self, rate: float, speed: float) -> dict[str, float]:
        """The numbers since the last line, which are then forgotten."""
        numbers = {f"{phase}/loss": total / self.applied[phase] for phase, total in self.lost.items()}
        numbers |= {f"{phase}/gradient": norm for phase, norm in self.norms.items()}
        numbers |= {f"{phase}/clipped": count / self.applied[phase] for phase, count in self.clipped.items()}
        self.lost, self.norms, self.clipped, self.applied = {}, {}, {}, {}
        return {**numbers, "rate": rate, "skipped": self.skipped, "samples_per_second": speed}
