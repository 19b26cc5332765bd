"""The worst that a hostile file does: seconds and memory until it is refused, over the corpus of the tests."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .command import child
from .measure import Setting, Table

WORST = 8


def run(setting: Setting) -> Iterator[Table]:
    """One table; device and precision play no part."""
    measured = json.loads(child(["-m", "tests.benchmarks.refusals"], {"OMP_NUM_THREADS": "1"}))
    by = {column: sorted(measured, key=lambda name: -measured[name][column]) for column in (0, 1)}
    shown = dict.fromkeys([*by[0][:WORST], *by[1][:WORST]])
    rows = {name: [measured[name][0], measured[name][1] / 2**20] for name in shown}
    rows["a tenth of them take more than"] = [
        measured[by[column][len(measured) // 10]][column] / (2**20 if column else 1) for column in (0, 1)
    ]
    title = f"refusing each of {len(measured)} hostile files, one process, CPU seconds and memory above what it held"
    yield Table(title, ("seconds", "MiB at peak"), rows)


if __name__ == "__main__":
    import sys

    from .command import main

    sys.exit(main(["hostile_files", *sys.argv[1:]]))
