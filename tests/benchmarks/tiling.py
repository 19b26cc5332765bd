"""Decoding and denoising by windows beside the whole: peak memory by the size of the image, and what is seen of them.

Every peak is that of a process of its own, above what it held before the call: resident memory on a CPU, what torch has
allocated on an accelerator. It holds the result, which is as large as the image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from ldmkit.tiling import Tiles, seam

from .command import child
from .measure import Setting, Table, absent, relative_error
from .networks import draw
from .tiled_peak import ON_CPU, OVERLAP, TILE, first_stage, wrapped

STEP = {"denoising step": ("whole", "tiled")}
DECODE = {"decode": ("whole", "tiled", "tiled-exact")}
ON_ACCELERATOR = {"decode": (*DECODE["decode"], ON_CPU)}
SIDES = {"small": (128,), "normal": (512, 1024, 2048), "large": (512, 1024, 2048, 3072)}
"""Size -> sides of the image in pixels."""
SEAMS = {"small": (64, 32, (0, 16)), "normal": (1024, 256, (0, 64, 128, 192))}
"""Size -> side of the image, of a window, overlaps."""


def run(setting: Setting) -> Iterator[Table]:
    """One table of peaks per call, and one of seams."""
    calls = {**(DECODE if setting.device.type == "cpu" else ON_ACCELERATOR), **STEP}
    for call, names in (STEP if setting.size == "small" else calls).items():
        yield peaks(call, names, setting)
    with torch.inference_mode():
        yield seams(setting)


def peaks(call: str, names: tuple[str, ...], setting: Setting) -> Table:
    """Peak memory of one call, by way and side."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    sides = SIDES[setting.size]
    rows: dict[str, list[float | None]] = {name: [] for name in names}
    for name, row in rows.items():
        for side in sides:
            words = [call, name, str(side), str(setting.device), setting.precision]
            before, peak = json.loads(child(["-m", "tests.benchmarks.tiled_peak", *words], threads))
            row.append((peak - before) / 2**20)
    title = f"peak MiB above weights, one {call}, narrow KL f = 8, windows of {TILE} px, {OVERLAP} px shared"
    return Table(f"{title}, {setting.label}", tuple(f"{side} px" for side in sides), rows, absent(setting))


def seams(setting: Setting) -> Table:
    """How steep an image is across the borders of windows, and how far it is from the whole in float64.

    The latent is smooth, so that nothing in the image hides a border. In float32 the whole itself is not exact: torch's
    norms lose digits over large maps.
    """
    side, tile, overlaps = SEAMS["small" if setting.size == "small" else "normal"]
    stage = first_stage(setting)
    z = F.interpolate(draw(setting, 1, 4, side // 64, side // 64), size=(side // 8, side // 8), mode="bicubic")
    right = first_stage(setting).double().decode(z.double())
    borders = Tiles(tile).windows((side, side))
    whole = stage.decode(z)
    rows: dict[str, list[float | None]] = {"whole": [seam(whole, borders), relative_error(whole, right)]}
    for overlap in overlaps:
        made = wrapped("tiled", stage, tile, overlap).decode(z)
        windows = Tiles(tile, overlap).windows((side, side))
        rows[f"{overlap} px shared"] = [seam(made, windows), relative_error(made, right)]
    exact = wrapped("tiled-exact", stage, tile).decode(z)
    rows["tiled-exact"] = [seam(exact, borders), relative_error(exact, right)]
    title = f"decode to {side} px by windows of {tile} px, {setting.label}: 1 is no seam"
    return Table(title, ("seam", "rel. error"), rows, absent(setting))


if __name__ == "__main__":
    import sys

    from .command import main

    sys.exit(main(["tiling", *sys.argv[1:]]))
