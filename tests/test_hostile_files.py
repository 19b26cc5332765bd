"""A file that is damaged or hostile gives one error, runs nothing, and takes little."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile
import pytest

from ldmkit.errors import CheckpointError
from ldmkit.parts import Part, Recipe
from ldmkit.weights.importing import import_checkpoint, import_first_stage
from ldmkit.weights.inspecting import inspect
from ldmkit.weights.reading import opened

SMALL = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
TINY = Recipe(Part("pixel", {}), Part("unet", {**SMALL, "num_heads": 1}), Part("vp", {}))
MOST_MEMORY = 128 * 2**20

WATCHED = """
import json, os, resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import hostile
from ldmkit.errors import CheckpointError
from ldmkit.weights.reading import opened

paths, seen, peaks = hostile.write(Path.cwd()), [], {}
QUIET = ("import", "exec", "compile", "open", "os.", "subprocess.", "socket.", "pickle.", "ctypes.", "shutil.")

def read(path):
    try:
        with opened(path) as contents:
            for name in contents.tensors:
                contents.read(name)
    except CheckpointError:
        return
    raise SystemExit(f"{path} was read")

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

for name in ("tensor behind its storage", "old format of another protocol", "header with a hole"):
    read(paths[name])  # for what Python itself loads once

allowed = {str(path) for path in paths.values()}
watching = False

def audit(event, arguments):
    if not watching or not event.startswith(QUIET) or (event == "open" and str(arguments[0]) in allowed):
        return
    seen.append(f"{event} {arguments!r:.100}")

sys.addaudithook(audit)
for name, path in paths.items():
    Path("/proc/self/clear_refs").write_text("5")
    before = held()
    watching = True
    read(path)
    watching = False
    peaks[name] = peak() - before
print(json.dumps({"seen": seen, "peaks": peaks, "executed": os.path.exists("executed")}))
"""


def read_all(path):
    """Open a file and read every tensor in it."""
    with opened(path) as contents:
        return {name: contents.read(name) for name in contents.tensors}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, Path]:
    return hostile.write(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("name", hostile.CORPUS)
def test_a_bad_file_is_one_error(corpus, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (read_all, lambda path: import_checkpoint(path, recipe=TINY), import_first_stage):
        with pytest.raises(CheckpointError) as error:
            use(corpus[name])
        assert str(corpus[name]) in str(error.value)
        assert len(str(error.value)) < 4000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("calls os.system by OBJ", r"names 'posix\.system'"),
        ("tensor of 3.6 TiB in one element", "in a storage of 12 elements"),
        ("tensor with strides that repeat", "repeats or skips elements"),
        ("pickle with keys that collide", "a int as a key"),
        ("pickle with a key that hashes without end", "a tuple as a key"),
        ("pickle with two million instructions", "more than 1,000,000 instructions"),
        ("archive with a compressed storage", "is compressed, which torch never does"),
        ("archive with a path out of it", r"holds '\.\./\.\./outside'"),
        ("archive with two names for an entry", "another name in its own header"),
        ("archive with its pickle twice", "more than once"),
        ("archive with a directory of 2 GiB", "2,147,483,648 bytes"),
        ("archive with a flipped byte", "not those that were written"),
        ("old format cut off in its numbers", "it is cut off"),
        ("header of 2^63 bytes", "claims 9,223,372,036,854,775,808 bytes"),
        ("header of a million brackets", "more entries"),
        ("header with a name twice", "'weight' more than once"),
        ("header with tensors that overlap", "does not begin where the one before it ends"),
        ("page of the web", "a page of the web"),
        ("pointer of git lfs", "git lfs pull"),
    ],
)
def test_a_bad_file_is_refused_for_what_is_wrong_with_it(corpus, name, reason):
    with pytest.raises(CheckpointError, match=reason):
        read_all(corpus[name])


def test_inspecting_a_program_runs_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        inspect(corpus["calls os.system"])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux tells it")
def test_nothing_is_run_opened_or_imported_and_memory_is_bounded(tmp_path):
    environment = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, here], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seen"] == []
    assert not found["executed"]
    assert {name: peak for name, peak in found["peaks"].items() if peak > MOST_MEMORY} == {}


def test_the_corpus_is_large_and_its_files_differ(corpus):
    assert len(corpus) >= 40
    assert len({path.read_bytes() for path in corpus.values()}) == len(corpus)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    for path in (tmp_path / "pipe.ckpt", tmp_path):
        with pytest.raises(CheckpointError, match="is not a file"):
            import_checkpoint(path, recipe=TINY)
    with pytest.raises(FileNotFoundError):
        import_checkpoint(tmp_path / "missing.ckpt", recipe=TINY)
