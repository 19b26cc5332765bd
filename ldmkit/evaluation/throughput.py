"""How fast a pipeline makes images: medians of whole calls and of single steps, after calls that do not count."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from ldmkit.calls import Step
from ldmkit.evaluation.sets import Samples
from ldmkit.training.parallel import summed, world


@dataclass(frozen=True)
class Throughput:
    """What was timed.

    Args:
        samples_per_second: of all processes together, decoding included.
        seconds_per_step: of the sampler, for one batch, guidance included; NaN for a call of one step.
        batch: images of a call.
        repeats: calls that count.
        warm_up: calls before them.
        device: name of the device.
        processes: how many ran side by side.
    """

    samples_per_second: float
    seconds_per_step: float
    batch: int
    repeats: int
    warm_up: int
    device: str
    processes: int


def throughput(samples: Samples, batch: int = 8, warm_up: int = 1, repeats: int = 5) -> Throughput:
    """Time a pipeline; all processes of a group call it.

    Steps are timed in a call of their own, because waiting for the device after each of them slows the call down.

    Args:
        samples: pipeline, inputs and options; the first ``batch`` records are used again and again.
        batch: images of a call.
        warm_up: calls that do not count.
        repeats: calls that count; the median is taken.

    Raises:
        ValueError: fewer records than a batch, or nothing to time.
    """
    if not 1 <= batch <= len(samples) or warm_up < 0 or repeats < 1:
        raise ValueError(
            f"throughput is timed with a batch of 1 to {len(samples)} records, warm_up of at least 0 and repeats of at "
            f"least 1, got {batch}, {warm_up} and {repeats}"
        )
    device, places = samples.pipe.model.device, list(range(batch))
    whole: list[float] = []
    for _ in range(warm_up + repeats):
        begun = _now(device)
        samples.call(places)
        whole.append(_now(device) - begun)
    stamps: list[tuple[int, float]] = []

    def stamp(step: Step) -> None:
        stamps.append((step.index, _now(device)))

    samples.call(places, stamp)
    steps = [late - early for (_, early), (index, late) in pairwise(stamps) if index > 0]
    rate = batch / statistics.median(whole[warm_up:])
    return Throughput(
        samples_per_second=summed(torch.tensor([rate], dtype=torch.float64))[0],
        seconds_per_step=statistics.median(steps) if steps else float("nan"),
        batch=batch,
        repeats=repeats,
        warm_up=warm_up,
        device=_named(device),
        processes=world(),
    )


def _now(device: torch.device) -> float:
    """The time at which the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _named(device: torch.device) -> str:
    name: Any = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name})"
