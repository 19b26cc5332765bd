"""Every published model from a file in the original's format to an image: two steps of its own task, at its own size.

``python -m tests.benchmarks every_model`` runs all that fit into memory; ``python -m tests.benchmarks.every_model
celebahq sd-1 --dtype bfloat16`` those that are named. A process writes a file of random weights, another one imports it
and samples, so that the peak is that of a user. ``--small`` makes the models narrow.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import ldmkit
from ldmkit.parts import Recipe
from ldmkit.recipes import PUBLISHED
from ldmkit.registry import names
from ldmkit.weights.native import without_initialisation

from .command import child, header
from .measure import Setting, Table, absent, synchronize
from .original_files import narrow, published_side, read_words, sampled, write
from .peak import measured

SMALL = ("celebahq",)
"""What tests run of it: the rest is in ``tests/test_every_model.py``."""

COLUMNS = ("M parameters", "image", "s import", "s two steps", "GiB at peak")
ROOM = 1.3
"""Memory that a model needs, in its weights in float32, which the writer holds at once."""


def run(setting: Setting, chosen: Sequence[str] = ()) -> Iterator[Table]:
    """One table.

    Args:
        setting: device and dtype; ``small`` for narrow models.
        chosen: names of published models; none: all, or a few narrow ones.
    """
    wanted = chosen or (SMALL if setting.size == "small" else PUBLISHED)
    rows: dict[str, Sequence[float | None]] = {}
    notes = ["two steps: inputs read, text and images encoded, sampled and decoded, at the size of training"]
    for name in wanted:
        missing = _unmet(name, setting)
        if missing:
            notes.append(f"{name} was left out: {missing}")
            continue
        with TemporaryDirectory() as folder:
            file = str(Path(folder) / "model.ckpt")
            threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
            words = [name, setting.size, file, str(setting.device), setting.precision]
            child(["-m", "tests.benchmarks.every_model", "--write", *words], threads)
            rows[name] = json.loads(child(["-m", "tests.benchmarks.every_model", "--measure", *words], threads))
        print(name, *rows[name], file=sys.stderr, flush=True)
    yield Table(f"every published model, {setting.label}", COLUMNS, rows, (*notes, *absent(setting)))


def measure(name: str, size: str, file: str, device: torch.device, dtype: torch.dtype) -> list[float]:
    """The numbers of :data:`COLUMNS` for one model, in this process."""
    recipe, times = _recipe(name, size), [time.perf_counter()]
    said: list[float] = []

    def call() -> None:
        model = ldmkit.import_checkpoint(file, recipe=recipe, device=device, dtype=dtype)
        synchronize(device)
        times.append(time.perf_counter())
        read_words(recipe, model, Path(file).parent)
        side = 2 * model.multiple if size == "small" else published_side(recipe)
        made = sampled(recipe, model, side)
        synchronize(device)
        times.append(time.perf_counter())
        if made.images.shape != (1, 3, side, side) or not bool(made.latents.isfinite().all()):
            raise RuntimeError(f"{name} made {tuple(made.images.shape)}, not one finite image of {side} x {side}")
        said.extend([sum(value.numel() for value in model.parameters()) / 1e6, side])

    _, peak = measured(call, device)
    start, imported, done = times
    return [*said, imported - start, done - imported, peak / 2**30]


def _unmet(name: str, setting: Setting) -> str:
    """What a model lacks here, as words; empty where it can run."""
    recipe = ldmkit.recipe(name)
    absent_parts = sorted({part.name for kind, part in recipe.parts() if part.name not in names(kind)})
    if absent_parts:
        return f"{', '.join(absent_parts)} are not installed"
    if setting.size == "small":
        return ""
    needed, there = ROOM * 4 * _numbers(recipe), _free()
    return f"it needs {needed / 2**30:.0f} GiB of memory, {there / 2**30:.0f} are free" if needed > there else ""


def _numbers(recipe: Recipe) -> int:
    """How many numbers the file of a model holds."""
    with without_initialisation():
        model = recipe.build()
    network = sum(value.numel() for value in model.denoiser.parameters())
    return sum(value.numel() for value in model.parameters()) + network * (recipe.notes["ema"] == "beside")


def _free() -> float:
    """Bytes of memory that are free, where Linux says it."""
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    return float("inf") if found is None else int(found[1]) * 1024.0


def _recipe(name: str, size: str) -> Recipe:
    recipe = ldmkit.recipe(name)
    return narrow(recipe) if size == "small" else recipe


def main(words: list[str]) -> int:
    """Write or measure one model for :func:`run`; otherwise the command line, whose names are models."""
    if words[:1] not in (["--write"], ["--measure"]):
        return _command(words)
    what, name, size, file, device, dtype = words
    if what == "--write":
        write(name, _recipe(name, size), file)
    else:
        print(json.dumps(measure(name, size, file, torch.device(device), getattr(torch, dtype))))
    return 0


def _command(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.every_model", description="published models")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PUBLISHED)}; none: all")
    parser.add_argument("--small", action="store_const", const="small", default="normal", dest="size", help="narrow")
    parser.add_argument("--device", default="cpu", help="where they run")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args(words)
    if unknown := sorted(set(options.names) - set(PUBLISHED)):
        parser.error(f"there is no published model {', '.join(unknown)}; the names are {', '.join(PUBLISHED)}")
    setting = Setting(torch.device(options.device), getattr(torch, options.dtype), options.size, opponent=False)
    print(header(), flush=True)
    for table in run(setting, options.names):
        print(f"\n{table}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
