"""Peak memory of one guided UNet step and of one decode, each in a process of its own.

On a CPU it is resident memory, as the system counts it; on an accelerator what torch has allocated. ``above weights``
is the peak less what was held before the call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch

from .command import child
from .measure import Setting, Table, absent

LIBRARIES = ("ldmkit", "diffusers", "diffusers channels-last")
SMALL = (("guided step", "tiny UNet", 8), ("decode", "tiny KL", 8))
NORMAL = (("guided step", "SD 1 UNet at half width", 64), ("decode", "KL f = 8", 32))
LARGE = (*NORMAL, ("guided step", "SD 1 UNet", 64), ("decode", "KL f = 8", 64))
SHAPES = {"small": SMALL, "normal": NORMAL, "large": LARGE}
"""Size -> (call, network, side of the latent)."""


def run(setting: Setting) -> Iterator[Table]:
    """One table per call."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    for what, name, side in SHAPES[setting.size]:
        rows: dict[str, list[float | None]] = {}
        for library in LIBRARIES if setting.opponent else LIBRARIES[:1]:
            words = [library, what, name, str(side), str(setting.device), setting.precision]
            before, peak = json.loads(child(["-m", "tests.benchmarks.peak", *words], threads))
            rows[library] = [before / 2**20, peak / 2**20, (peak - before) / 2**20]
        title = f"peak memory of one {what}, {name}, latent {side} x {side}, {setting.label}"
        yield Table(title, ("MiB before", "MiB at peak", "above weights"), rows, absent(setting))


if __name__ == "__main__":
    import sys

    from .command import main

    sys.exit(main(["memory", *sys.argv[1:]]))
