"""Every format gives the tensors that were written, whatever a training program left beside them."""

import ast
import pathlib
import sys
import threading
import types
from collections import OrderedDict, defaultdict
from pathlib import Path

import hostile
import numpy as np
import pytest
import safetensors.torch
import torch

import ldmkit
from ldmkit.errors import CheckpointError
from ldmkit.weights.reading import opened

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool),
)


def state():
    """A tensor of every kind, and every layout that a tensor may have in memory."""
    torch.manual_seed(0)
    made = {f"kind.{str(dtype)[6:]}": (torch.randn(2, 3, 4) * 4).to(dtype) for dtype in DTYPES}
    large = torch.randn(6, 5, 4, 3)
    return made | {
        "no_sides": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "transposed": torch.randn(3, 4).T,
        "channels_last": large.contiguous(memory_format=torch.channels_last),
        "slice": large[2:4],
        "one_of_two": large,
        "the_other": large,
        "position_ids": torch.arange(7).expand(1, -1),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }


def save(path, value, layout):
    """Write in one of the layouts."""
    if layout == "safetensors":
        safetensors.torch.save_file({name: v.detach().clone().contiguous() for name, v in value.items()}, path)
    else:
        torch.save(value, path, _use_new_zipfile_serialization=layout == "zip")


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_every_tensor_is_read_as_it_was_written(tmp_path, layout):
    written = state()
    save(tmp_path / "file", written, layout)
    with opened(tmp_path / "file") as contents:
        assert contents.shapes == {name: tuple(value.shape) for name, value in written.items()}
        for name, value in written.items():
            found = contents.read(name)
            assert found.dtype == value.dtype
            assert torch.equal(found, value)
            assert found.is_contiguous()
            assert found.untyped_storage().nbytes() <= max(1, found.numel()) * found.itemsize


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_tied_tensors_lie_in_one_place(tmp_path, layout):
    save(tmp_path / "file", state(), layout)
    with opened(tmp_path / "file") as contents:
        assert contents.tensors["one_of_two"] == contents.tensors["the_other"] != contents.tensors["parameter"]


@pytest.fixture
def lightning(monkeypatch):
    """What a training program puts into its files, from modules that are gone when the file is read."""
    names = ("pytorch_lightning.callbacks.model_checkpoint", "pytorch_lightning.utilities.parsing")
    checkpoint = type("ModelCheckpoint", (), {"__module__": names[0]})
    attributes = type("AttributeDict", (dict,), {"__module__": names[1]})
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.utilities", *names):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[names[0]].ModelCheckpoint = checkpoint
        sys.modules[names[1]].AttributeDict = attributes

        def write(path, tensors, layout, **further):
            ordered = OrderedDict(tensors)
            ordered._metadata = OrderedDict({"": {"version": 1}})
            weight = torch.nn.Parameter(torch.ones(3))
            optimizer = torch.optim.AdamW([weight])
            weight.sum().backward()
            optimizer.step()
            beside = {
                "epoch": 12,
                "global_step": 470_000,
                "pytorch-lightning_version": "1.4.2",
                "callbacks": {checkpoint: {"best": np.float64(0.5), "path": pathlib.PurePosixPath("a/b"), "n": {1, 2}}},
                "hyper_parameters": attributes(rate=np.int64(3), table=np.ones(3), kinds=defaultdict(list), c=1j),
                "optimizer_states": [optimizer.state_dict()],
                "lr_schedulers": [],
            }
            save(path, {"state_dict": ordered, **beside, **further}, layout)

        yield write
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_what_lightning_left_beside_the_weights_is_known_and_not_needed(tmp_path, lightning, layout):
    written = state()
    lightning(tmp_path / "last.ckpt", written, layout)
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        del sys.modules[name]
    before = [*torch.serialization.get_safe_globals()]
    with opened(tmp_path / "last.ckpt") as contents:
        assert contents.shapes == {name: tuple(value.shape) for name, value in written.items()}
        assert all(torch.equal(contents.read(name), value) for name, value in written.items())
    assert contents.facts["global_step"] == 470_000
    assert contents.others["optimizer_states"] == "state of the optimizer"
    assert contents.others["callbacks"] == "state of the training program"
    assert torch.serialization.get_safe_globals() == before


def test_a_state_dict_may_stand_alone_with_numbers_beside(tmp_path):
    torch.save({"weight": torch.ones(2), "global_step": 3}, tmp_path / "file")
    with opened(tmp_path / "file") as contents:
        assert list(contents.tensors) == ["weight"]
        assert contents.facts == {"global_step": 3}


def test_whole_objects_are_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"names 'torch\.nn\.modules\.linear\.Linear'"), opened(tmp_path / "file"):
        pass


def test_threads_read_good_and_bad_files_without_meeting(tmp_path):
    written = state()
    save(tmp_path / "good", written, "zip")
    hostile.CORPUS["calls os.system"](tmp_path / "bad")
    before = [*torch.serialization.get_safe_globals()]
    outcomes = []

    def read(name):
        for _ in range(20):
            try:
                with opened(tmp_path / name) as contents:
                    outcomes.append((name, torch.equal(contents.read("slice"), written["slice"])))
            except CheckpointError as error:
                outcomes.append((name, "posix.system" in str(error)))
            assert torch.serialization.get_safe_globals() == before

    threads = [threading.Thread(target=read, args=(name,)) for name in ("good", "bad") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 160
    assert all(ok for _, ok in outcomes)


UNPICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_no_module_of_ldmkit_unpickles():
    package = Path(ldmkit.__file__).parent
    for path in {*package.rglob("*.py")} - {package / "testing" / "copies.py"}:  # which reads what it wrote
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not UNPICKLERS & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True", f"{path}: say weights_only=True, or an environment may not"
