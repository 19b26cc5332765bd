"""Seconds and peak memory of loading one large UNet from a local file, each time in a process of its own.

``above before`` is what resident memory grew by at its peak, ``x file`` that divided by the file's size, and ``mapped``
how much of what it grew to is pages of the file, which another program may change or truncate. A library that maps its
file has read nothing when loading returns, so there is a row for loading and then reading every weight once, as the
first step would. Files are in the page cache: what is measured is the library, not the disk. 1.5 billion parameters
take 3 GB of disk for each library, and minutes; so it runs where it is named, and at a small size in the tests.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import nn

import ldmkit
from ldmkit.backbones.unet import UNet

from .command import child
from .measure import Call, Setting, Table, absent, synchronize
from .networks import SD1, TINY, millions
from .peak import resident

SHAPES = {
    "small": {"model_channels": 32, "num_heads": 2, **TINY},
    "normal": {"model_channels": 416, "num_heads": 8, **SD1},
    "large": {"model_channels": 416, "num_heads": 8, **SD1},
}
WAYS = {
    "ldmkit": ("load", ""),
    "ldmkit, then every weight read": ("load", "read"),
    "ldmkit, verify=True": ("load", "verify"),
    "diffusers": ("from_pretrained", ""),
    "diffusers, then every weight read": ("from_pretrained", "read"),
}
CHILD = "import sys; from tests.benchmarks import loading; loading.{}(*sys.argv[1:])"
FILE, FOLDER = "model.safetensors", "diffusers"
PAGE = 4096
RESET = Path("/proc/self/clear_refs")


def run(setting: Setting) -> Iterator[Table]:
    """One table."""
    dtype = "bfloat16" if setting.size != "small" else setting.precision
    with TemporaryDirectory() as folder:
        size = setting.size
        written = told("write_ours", folder, size, dtype)
        ways = {name: way for name, way in WAYS.items() if setting.opponent or "diffusers" not in name}
        if setting.opponent:
            told("write_theirs", folder, size, dtype)
        rounds = 1 if size == "small" else min(3, setting.rounds)
        given = (str(setting.device), dtype)
        turns = [{name: told(way, folder, *given, also) for name, (way, also) in ways.items()} for _ in range(rounds)]
    bytes_of_file = written["bytes"]
    rows: dict[str, list[float | None]] = {}
    for name in ways:
        figures = {key: median(turn[name][key] for turn in turns) for key in turns[0][name]}
        above = figures["peak"] / 2**20
        rows[name] = [
            figures["seconds"],
            figures["cpu"],
            above,
            figures["peak"] / bytes_of_file,
            figures["mapped"] / 2**20,
        ]
    columns = ("seconds", "CPU seconds", "MiB above before", "x file", "MiB mapped")
    title = (
        f"loading {millions(network(size))} parameters in {dtype} ({bytes_of_file / 1e9:.2f} GB) to {setting.device}"
    )
    saving = f"ldmkit wrote its file in {written['seconds']:.1f} s, {written['peak'] / 2**20:.0f} MiB above before"
    yield Table(f"{title}, {rounds} rounds", columns, rows, (saving, *absent(setting)))


def told(what: str, *words: str) -> dict[str, float]:
    """What a function of this module prints in a fresh process."""
    found: dict[str, float] = json.loads(child(["-c", CHILD.format(what), *words]).splitlines()[-1])
    return found


def network(size: str) -> UNet:
    """The UNet of a size, on ``meta``."""
    with torch.device("meta"):
        return UNet(4, **SHAPES[size])


def write_ours(folder: str, size: str, dtype: str) -> None:
    """Write the file of ldmkit, and say how long it took."""
    backbone = network(size).to(getattr(torch, dtype)).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(0.01)
    context = {"key": "text", "slot": "context", "size": backbone.context_dim}
    model = ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=4),
        backbone=backbone,
        process=ldmkit.build("process", "vp"),
        conditioner={"text": ldmkit.build("conditioner", "precomputed", **context)},
    )
    path = Path(folder, FILE)
    measured(lambda: model.save(path), torch.device("cpu"), path)


def write_theirs(folder: str, size: str, dtype: str) -> None:
    """Write a folder of diffusers with as many numbers."""
    from . import opponents

    model = opponents.unet(network(size)).to(getattr(torch, dtype)).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    model.save_pretrained(Path(folder, FOLDER))
    print("{}")


def load(folder: str, device: str, dtype: str, also: str) -> None:
    """Load with ldmkit; the file says its own precision. Every import is done before the clock starts."""
    from ldmkit.weights import native

    del dtype
    UNet(4, **SHAPES["small"])
    path = Path(folder, FILE)
    verify = also == "verify"
    measured(lambda: read(native.load(path, device, verify=verify), also), torch.device(device), path)


def from_pretrained(folder: str, device: str, dtype: str, also: str) -> None:
    """Load with diffusers, in the precision of the file. Every import is done before the clock starts."""
    from . import opponents

    path = Path(folder, FOLDER)
    opponents.unet(network("small"))
    cls, given = opponents.UNet2DConditionModel, getattr(torch, dtype)
    measured(lambda: read(cls.from_pretrained(path, torch_dtype=given).to(device), also), torch.device(device), path)


def read(model: nn.Module, also: str) -> nn.Module:
    """The model, with every page of its weights touched if ``also`` says so."""
    if also == "read":
        for parameter in model.parameters():
            parameter.detach().flatten().view(torch.uint8)[::PAGE].sum()
    return model


def measured(call: Call, device: torch.device, path: Path) -> None:
    """Print seconds, CPU seconds and bytes of memory of one call, as JSON."""
    if RESET.exists():
        RESET.write_text("5")  # the peak is counted from here
    before, mapped = resident("VmRSS"), resident("RssFile")
    wall, cpu = time.perf_counter(), time.process_time()
    kept = call()
    synchronize(device)
    figures = {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": resident("VmHWM") - before,
        "mapped": resident("RssFile") - mapped,
        "bytes": path.stat().st_size if path.is_file() else 0,
    }
    print(json.dumps(figures))
    del kept


if __name__ == "__main__":
    from .command import main

    sys.exit(main(["loading", *sys.argv[1:]]))
