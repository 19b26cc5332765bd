"""The loop: one importable function for either stage, on one device or under ``torchrun``.

>>> run = Run(out="runs/digits", steps=6000, batch=64, rate=cosine(1e-3, 6000, warm_up=200))
>>> train(Diffusion(model, "class-conditional"), records, run)

Everything a step draws is a function of (seed, step, number of the sample), and whatever else a step depends on is in
the state on disk: a run that was killed goes on from its last state to the same bits, and several processes compute
the gradients of one. Dropout inside a network alone depends on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ldmkit.errors import CheckpointError, NonFiniteError
from ldmkit.training.contract import Augment, Reporting, Trainee
from ldmkit.training.data import Data, Feed, Portion, Streaming
from ldmkit.training.interruption import Interruption, Stopped, interruptible
from ldmkit.training.log import Log, write_sheet
from ldmkit.training.parallel import barrier, process_group, rank, world
from ldmkit.training.phase import Outcome, Phase, moved
from ldmkit.training.run import Progress, Run
from ldmkit.training.state import newest, read_record, restore, save, sweep

RESULT = "model.safetensors"


def train(trainee: Trainee, data: Data | Streaming, run: Run, augment: Augment | None = None) -> Path:
    """Train from where the run's folder says it is, and export the averaged weights.

    The same call starts a run, goes on with it, and exports a finished one again. Under a launcher every process makes
    it. SIGINT and SIGTERM end it after the step, with the state saved. Afterwards the modules hold what was exported.

    Args:
        trainee: what is trained, on the device it is trained on.
        data: records by place, or a stream of them.
        run: how.
        augment: applied to every sample with its seed.

    Returns:
        The exported file.

    Raises:
        ValueError: a batch that the processes cannot share equally, no data, or nothing to train.
        CheckpointError: the folder's run had another seed, batch, data set or model.
        NonFiniteError: too many steps in a row were not finite; the message names the samples.
        RuntimeError: a sample cannot be read.
        Stopped: a signal ended the run.
    """
    with process_group(), ExitStack() as stack:
        feed = Feed(data, augment, run.seed, run.batch, rank(), world(), run.accumulate, run.workers)
        out = Path(run.out)
        if rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
            sweep(out)
        barrier()
        device = _device(trainee.phases)
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        job = Job(trainee, feed, run, device)
        log = stack.enter_context(Log(out, job.progress.step, run.steps, run.watch, run.progress))
        with interruptible() as wish:
            for portions in feed.steps(job.progress.step, run.steps):
                job.step(portions, log, wish)
        job.export(out / RESULT)
        return out / RESULT


class Job:
    """A run as it goes in this process.

    Args:
        trainee: what is trained.
        feed: this process's share of the data.
        run: how.
        device: where.
    """

    def __init__(self, trainee: Trainee, feed: Feed, run: Run, device: torch.device) -> None:
        self.trainee = trainee
        self.run = run
        self.out = Path(run.out)
        self.device = device
        self.identity = {"seed": run.seed, "batch": run.batch, "samples": feed.samples}
        folder = newest(self.out)
        if folder is None:
            trainee.begin(feed.first)
        self.progress = Progress() if folder is None else _progress(folder, self.identity, run.steps)
        named = enumerate(trainee.phases.items())
        self.phases = [Phase(name, number, module, run, device) for number, (name, module) in named]
        if folder is not None:
            restore(folder, [phase.learner for phase in self.phases])
        self.clock = perf_counter()

    def step(self, portions: Sequence[Portion], log: Log, wish: Interruption) -> None:
        """Take one step, and write what is due after it.

        Raises:
            NonFiniteError: too many steps in a row were skipped.
            Stopped: some process was asked to stop; the state is saved.
        """
        progress, run = self.progress, self.run
        taken = [(moved(self._prepared(p), self.device), p) for p in portions]
        outcomes = {
            phase.learner.name: phase.learn(taken, progress.step, wish.signal is not None) for phase in self.phases
        }
        progress.step += 1
        log.advance()
        self._count(outcomes, log)
        done = progress.step
        ends, stops = done == run.steps, any(outcome.stopping for outcome in outcomes.values())
        if ends or done % run.log_every == 0:
            log.numbers(done, self._line())
        if ends or stops or done % run.save_every == 0:
            self._save()
        if stops and not ends:
            raise Stopped(
                f"stopped by a signal after step {done} of {run.steps}; the same call goes on from {self.out}"
            )
        if ends or done % run.show_every == 0:
            self._show(log)

    def export(self, path: Path) -> None:
        """Leave the averaged weights in the modules, and write them."""
        for phase in self.phases:
            phase.finish()
        if rank() == 0:
            self.trainee.export(path, {**self.identity, "steps": self.progress.step, "ema": self.run.ema})
        barrier()

    def _prepared(self, portion: Portion) -> dict[str, Any]:
        """The batch of a portion; what is wrong with it names its samples."""
        try:
            return self.trainee.prepare(portion.records, portion.seeds)
        except Exception as error:
            error.add_note(f"the batch is the samples {list(portion.places)} of the data, in this order")
            raise

    def _count(self, outcomes: Mapping[str, Outcome], log: Log) -> None:
        """Take the outcomes into the progress; stop where too many in a row could not be applied."""
        progress = self.progress
        refused = {name: outcome for name, outcome in outcomes.items() if outcome.suspects is not None}
        for name, outcome in outcomes.items():
            if name not in refused:
                progress.count(name, outcome.loss, outcome.norm, self.run.clip)
        if not refused:
            progress.in_a_row = 0
            return
        progress.skipped += 1
        progress.in_a_row += 1
        words = "; ".join(
            f"phase '{name}' was not applied: loss {outcome.loss:g}, gradient {outcome.norm:g}, {outcome.suspects}"
            for name, outcome in refused.items()
        )
        log.event(progress.step, words)
        if progress.in_a_row > self.run.max_skipped:
            raise NonFiniteError(
                f"{progress.in_a_row} steps in a row were not finite, up to step {progress.step}: {words}. Lower the "
                "rate, look at these samples, or train in float32"
            )

    def _line(self) -> dict[str, float]:
        now = perf_counter()
        steps = sum(self.progress.applied.values()) / len(self.phases)
        speed = self.run.batch * steps / (now - self.clock)
        self.clock = now
        return self.progress.line(self.run.rate(self.progress.step - 1), speed)

    def _save(self) -> None:
        record = {**self.identity, "progress": asdict(self.progress)}
        save(self.out, self.progress.step, [phase.learner for phase in self.phases], record)

    def _show(self, log: Log) -> None:
        trainee, step = self.trainee, self.progress.step
        with self._averaged():
            with torch.no_grad():
                pictures = trainee.show(step)
            numbers = trainee.numbers(step) if isinstance(trainee, Reporting) else {}
        for name, images in pictures.items() if rank() == 0 else ():
            write_sheet(images, self.out / "shown" / f"{name}-{step:08d}.png")
        if numbers:
            log.numbers(step, {f"shown/{name}": number for name, number in numbers.items()})

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        with ExitStack() as stack:
            for phase in self.phases:
                stack.enter_context(phase.averaged())
            yield


def _progress(folder: Path, identity: Mapping[str, int | None], steps: int) -> Progress:
    """How far a folder's run is; refuse one that this run cannot go on with."""
    record = read_record(folder)
    for name, value in identity.items():
        if record[name] != value:
            raise CheckpointError(
                f"{folder} is of a run with {name}={record[name]}, and this one has {name}={value}: it would not go on "
                "with the same samples; give the run another folder"
            )
    progress = Progress(**record["progress"])
    if progress.step > steps:
        raise CheckpointError(f"{folder} is after step {progress.step}, and the run has {steps}: it has gone further")
    return progress


def _device(phases: Mapping[str, nn.Module]) -> torch.device:
    """Where the phases are."""
    devices = {p.device for module in phases.values() for p in module.parameters()}
    if len(devices) != 1:
        raise ValueError(f"the phases of a run are on one device, got {sorted(map(str, devices)) or 'no parameters'}")
    return devices.pop()
