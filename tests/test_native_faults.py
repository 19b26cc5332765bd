"""What goes wrong while a file is written or read: killed, no room, no memory; the model that was there stays."""

import os
import subprocess
import sys

import pytest
import torch

import ldmkit
from ldmkit.errors import CheckpointError
from ldmkit.model import compose
from ldmkit.parts import Part, Recipe
from ldmkit.weights.atomic import partial_file, write_atomically
from ldmkit.weights.native import save, verify

UNET = {
    "channels": 3,
    "model_channels": 32,
    "channel_mult": [1],
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "num_heads": 1,
}
RECIPE = Recipe(Part("pixel"), Part("unet", UNET), Part("vp"))
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="signals, limits and /proc as Linux has them")


def child(code, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# Forks writers that kill themselves just before the n-th call that touches the file system: every ninth n, and all of
# the last 20, where the renames are.
KILLED = f"""
import os, signal, sys
from pathlib import Path
import ldmkit
from ldmkit.model import compose
from ldmkit.parts import Part, Recipe
from ldmkit.weights.native import save, verify

FILES = {{"open", "write", "seek", "flush", "close", "fsync", "flock", "replace", "rename", "unlink", "chmod"}}
old, new = (compose(Recipe(Part("pixel"), Part("unet", {UNET!r}), Part("vp"))) for _ in range(2))
path = Path(sys.argv[1])

def save_until(last, most):
    count = 0
    def watch(frame, event, function):
        nonlocal count
        if event == "c_call" and function.__name__ in FILES:
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(watch)
    save(new, path, max_shard_bytes=most)
    sys.setprofile(None)
    return count

hashes = []
for model in (old, new):
    save(model, path)
    hashes.append(verify(path))
for before, most in ((10**9, 10**9), (10**9, 300_000), (300_000, 10**9), (300_000, 300_000)):
    save(old, path, max_shard_bytes=before)
    total = save_until(0, most)
    found = []
    for last in (*range(1, total - 20, 9), *range(total - 20, total + 1)):
        save(old, path, max_shard_bytes=before)
        if not (pid := os.fork()):
            save_until(last, most)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), last
        found.append(hashes.index(verify(path)))
        ldmkit.load(path)
    save(old, path, max_shard_bytes=before)
    print(before, most, found.count(0), found.count(1), len(list(path.parent.glob(".*.partial"))))
"""


@LINUX
def test_a_writer_that_is_killed_leaves_the_old_model_or_the_new_one(tmp_path):
    lines = child(KILLED, tmp_path / "model.safetensors")
    for before, most, old, new, left in zip(*[map(int, lines)] * 5, strict=True):
        assert old > 15, (before, most)
        assert new > 0, (before, most)
        assert left == 0, "the next writer cleans up"
    assert len(lines) == 4 * 5


@LINUX
@pytest.mark.parametrize("most", [10**9, 300_000], ids=["file", "shards"])
def test_a_full_disk_leaves_the_old_model_and_nothing_else(tmp_path, most):
    import resource

    path = tmp_path / "model.safetensors"
    save(compose(RECIPE), path)
    before, listing = verify(path), os.listdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # the signal is ignored, so that write() fails
    try:
        with pytest.raises(OSError, match="File too large"):
            save(compose(RECIPE), path, max_shard_bytes=most)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert verify(path) == before
    assert os.listdir(tmp_path) == listing


def test_a_weight_that_is_not_finite_is_told_before_anything_is_replaced(tmp_path):
    path = tmp_path / "model.safetensors"
    model = compose(RECIPE)
    model.save(path)
    before, listing = verify(path), os.listdir(tmp_path)
    with torch.no_grad():
        model.backbone.out[2].bias[0] = float("inf")
    with pytest.raises(ValueError, match=r"out\.2\.bias: not finite"):
        save(model, path, max_shard_bytes=300_000)
    assert verify(path) == before
    assert os.listdir(tmp_path) == listing


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path):
    from ldmkit.weights.tensor_file import opened

    path = tmp_path / "model.safetensors"
    compose(RECIPE).save(path)
    with opened(path) as file:
        last = max(file.entries.values(), key=lambda entry: entry.stop)
        os.truncate(path, last.stop - 1)
        with pytest.raises(CheckpointError, match="it ends too early"):
            file.read(last.name, into=torch.empty(last.shape, dtype=last.dtype))


def test_a_model_does_not_change_when_its_file_does(tmp_path):
    path = tmp_path / "model.safetensors"
    compose(RECIPE).save(path)
    model = ldmkit.load(path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [("no/such/m.safetensors", FileNotFoundError, "make it first"), ("", IsADirectoryError, "is a folder")],
)
def test_a_place_that_cannot_be_written_is_told_before_anything_is(tmp_path, name, error, message):
    with pytest.raises(error, match=message):
        compose(RECIPE).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_dead_writers_file_is_swept_and_a_live_ones_is_not(tmp_path):
    dead = tmp_path / ".m.0123.partial"
    dead.write_text("left")
    other = tmp_path / ".n.0123.partial"
    other.write_text("of another file")
    with partial_file(tmp_path / "m") as (live, _):
        assert not dead.exists()
        write_atomically(tmp_path / "m", lambda partial: partial.write_text("done"))
        assert live.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == [other.name, "m"]


# A part of 64 MiB that initialises itself as careless ones do, and one number that tells how much memory came on top.
MEMORY = """
import re, sys
from pathlib import Path
import torch
from torch import nn
import ldmkit
from ldmkit.conditioning import Conditioning

class Wide(nn.Module):
    reads, provides = ("x",), {"vector": 4}

    def __init__(self, blocks=8):
        super().__init__()
        self.blocks = blocks
        self.layers = nn.ModuleList(nn.Linear(2048, 1024) for _ in range(blocks))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, batch):
        return Conditioning(vector=batch["x"])

    def null(self, batch):
        return Conditioning(vector=torch.zeros_like(batch["x"]))

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

ldmkit.register("conditioner", "wide-for-test", Wide)
path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
if not path.exists():
    unet = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
    model = ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel"),
        backbone=ldmkit.build("backbone", "unet", **unet, num_heads=1, vector_dim=4),
        process=ldmkit.build("process", "vp"),
        conditioner={"x": ldmkit.build("conditioner", "wide-for-test")},
    )
    model.to(dtype).save(path)
else:
    ldmkit.build("backbone", "unet", channels=3, model_channels=32, channel_mult=[1], num_res_blocks=1,
                 attention_resolutions=[], num_heads=1)
    before = resident("VmRSS")
    model = ldmkit.load(path)
    print(resident("VmHWM") - before, path.stat().st_size)
"""


@LINUX
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_loading_takes_the_files_size_in_memory_and_little_more(tmp_path, dtype):
    child(MEMORY, tmp_path / "m.safetensors", dtype)
    above, size = map(int, child(MEMORY, tmp_path / "m.safetensors", dtype))
    assert size > 30e6
    assert above < 1.2 * size + 16e6  # what the library keeps for itself, whatever the size; a second copy is more
