"""CPU milliseconds of listing all components with many plug-ins installed, each time in a fresh interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from .command import child
from .measure import Setting, Table, absent

BUDGET = 150
"""CPU milliseconds that listing may cost with ``PLUGINS`` installed, from the interpreter's start."""

PLUGINS = 30
ALONE = "python alone"
WITHOUT = "list all components"
WITH = f"the same with {PLUGINS} plug-ins more"
LISTING = "from ldmkit.registry import KINDS, names; count = sum(len(names(kind)) for kind in KINDS)"

LIGHT = """
import ldmkit

ldmkit_api = (1, 0)


@ldmkit.hookimpl
def ldmkit_register(register):
    register.conditioner("map-{number}", "bench_{number}_heavy:Map")
    register.sampler("walk-{number}", "bench_{number}_heavy:Walk")
"""
OFFERED = 2
"""Components of each plug-in."""


def run(setting: Setting) -> Iterator[Table]:
    """One table; device and precision play no part.

    Raises:
        RuntimeError: the plug-ins were installed and not listed, so that the times would mean nothing.
    """
    with TemporaryDirectory() as folder, TemporaryDirectory() as empty:
        for number in range(PLUGINS):
            install(Path(folder), number)
        contenders = {ALONE: ("count = 0", empty), WITHOUT: (LISTING, empty), WITH: (LISTING, folder)}
        rounds = max(5, setting.rounds)
        # The first round writes the byte code that the others read, as an installation has it.
        turns = [{name: fresh(*what) for name, what in contenders.items()} for _ in range(1 + rounds)]
    found = turns[0][WITH][1] - turns[0][WITHOUT][1]
    if found != OFFERED * PLUGINS:
        raise RuntimeError(f"{PLUGINS} plug-ins offer {OFFERED * PLUGINS} components, but {found} were listed")
    times = {name: [turn[name][0] for turn in turns[1:]] for name in contenders}
    rows = {name: (median(own), min(own)) for name, own in times.items()}
    verdict = verdicts(rows[WITH][0], loads_torch=any(turn[WITH][2] for turn in turns))
    title = f"listing with {PLUGINS} plug-ins, CPU milliseconds, {rounds} rounds"
    yield Table(title, ("median", "fastest"), rows, (*verdict, *absent(setting)))


def install(site: Path, number: int) -> None:
    """Write one plug-in as an installer does: a light module and a ``*.dist-info`` folder."""
    (site / f"bench_{number}.py").write_text(LIGHT.format(number=number))
    folder = site / f"ldmkit_bench_{number}-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ldmkit-bench-{number}\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text(f"[ldmkit]\nmain = bench_{number}\n")


def fresh(code: str, site: str) -> tuple[float, int, bool]:
    """CPU milliseconds from a fresh interpreter's start, ``count`` of the code, and whether torch is loaded then."""
    report = f"import sys, time\n{code}\nprint(1000 * time.process_time(), count, 'torch' in sys.modules)"
    path = os.pathsep.join(filter(None, [site, os.environ.get("PYTHONPATH")]))
    cpu, count, torch_too = child(["-c", report], {"PYTHONPATH": path}).split()
    return float(cpu), int(count), torch_too == "True"


def verdicts(cpu: float, loads_torch: bool) -> tuple[str, str]:
    """What the numbers say about the budget, and whether listing loads torch."""
    held = "within" if cpu <= BUDGET else "OVER"
    return (
        f"listing with {PLUGINS} plug-ins costs {cpu:.0f} ms of CPU: {held} {BUDGET} ms",
        f"listing with {PLUGINS} plug-ins loads {'torch, WHICH IT MUST NOT' if loads_torch else 'no torch'}",
    )


if __name__ == "__main__":
    import sys

    from .command import main

    sys.exit(main(["listing", *sys.argv[1:]]))
