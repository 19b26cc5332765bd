"""One call in this process, which was started for it: prints the bytes held before and at the peak, as JSON.

``python -m tests.benchmarks.peak LIBRARY CALL NETWORK SIDE DEVICE DTYPE``, as :mod:`tests.benchmarks.memory` does.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path

import torch

from .measure import Call, Setting, synchronize
from .networks import SCALE, draw, filled, first_stage, guided_pair, unet
from .unet_step import T, channels_last

STATUS = Path("/proc/self/status")


def measured(call: Call, device: torch.device) -> tuple[int, int]:
    """(before, peak) in bytes around one call."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        before = torch.accelerator.memory_allocated(device)
        call()
        synchronize(device)
        return before, torch.accelerator.max_memory_allocated(device)
    before = resident("VmRSS")
    call()
    return before, resident("VmHWM")


def resident(field: str) -> int:
    """Bytes of resident memory: now (``VmRSS``) or at the peak (``VmHWM``); only the peak where Linux is not.

    ``getrusage`` alone would not do: Linux carries the peak of the parent into the process that it starts.
    """
    if STATUS.exists():
        found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
        assert found is not None
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def step(library: str, name: str, side: int, setting: Setting) -> Call:
    """One guided step of a library, weights in place."""
    network = unet(name)
    if library == "ldmkit":
        filled(network, setting)
        x, cond = guided_pair(network, side, setting)
        return lambda: network.bind(cond, [T])(x, T)
    from . import opponents

    model = filled(opponents.unet(network), setting)
    x, cond = guided_pair(network, side, setting)
    if library != "diffusers":
        model, x = opponents.tuned(model, fused=False), channels_last(x)
    return lambda: model(x, T, encoder_hidden_states=cond.context).sample


def decode(library: str, name: str, side: int, setting: Setting) -> Call:
    """One decode of a library, weights in place."""
    network = first_stage(name)
    z = draw(setting, 1, network.channels, side, side)
    if library == "ldmkit":
        filled(network, setting)
        return lambda: network.decode(z)
    from . import opponents

    model = filled(opponents.first_stage(network), setting)
    if library != "diffusers":
        model, z = opponents.tuned(model, fused=False), channels_last(z)
    return lambda: model.decode(z / SCALE).sample


def main(words: list[str]) -> None:
    """Measure what the words say."""
    library, what, name, side, device, dtype = words
    setting = Setting(device=torch.device(device), dtype=getattr(torch, dtype))
    call = (step if what == "guided step" else decode)(library, name, int(side), setting)
    with torch.inference_mode():
        print(json.dumps(measured(call, setting.device)))


if __name__ == "__main__":
    main(sys.argv[1:])
