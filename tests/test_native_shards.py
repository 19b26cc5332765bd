"""A model over several files: complete and of one save, or refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import ldmkit
from ldmkit.errors import CheckpointError
from ldmkit.model import compose
from ldmkit.parts import Part, Recipe
from ldmkit.weights.native import read_recipe, save, verify

UNET = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
RECIPE = Recipe(Part("pixel"), Part("unet", {**UNET, "num_heads": 1}), Part("vp"))
LIMIT = 150_000


@pytest.fixture(scope="module")
def model():
    return compose(RECIPE)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    save(model, folder / "model.safetensors", max_shard_bytes=LIMIT)
    return folder


@pytest.fixture
def index(written, tmp_path):
    """The index of a set in a folder of its own."""
    shutil.copytree(written, tmp_path / "set")
    return tmp_path / "set" / "model.safetensors.index.json"


def shards(folder):
    return sorted(folder.glob("*-of-*.safetensors"))


def equal(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def another():
    model = compose(RECIPE)
    with torch.no_grad():
        model.backbone.out[2].bias.fill_(0.5)
    return model


def test_a_set_loads_by_its_index_and_by_the_name_it_was_saved_under(model, index):
    assert len(shards(index.parent)) > 2
    for name in (index, index.with_name("model.safetensors")):
        assert equal(ldmkit.load(name, verify=True), model)
        assert read_recipe(name) == RECIPE


def test_saving_says_what_to_load(model, tmp_path):
    assert save(model, tmp_path / "a.safetensors") == tmp_path / "a.safetensors"
    assert save(model, tmp_path / "b.safetensors", max_shard_bytes=LIMIT) == tmp_path / "b.safetensors.index.json"


def test_every_shard_keeps_to_the_size_and_carries_the_recipe(index):
    for shard in shards(index.parent):
        tensors = load_file(shard)
        assert len(tensors) == 1 or sum(value.nbytes for value in tensors.values()) <= LIMIT
        with safe_open(shard, framework="pt") as file:
            record = json.loads(file.metadata()["ldmkit"])
        assert Recipe.from_json(record["recipe"]) == RECIPE
        assert record["content"][:8] in shard.name


def test_a_model_has_one_hash_however_it_is_cut(model, index, tmp_path):
    model.save(tmp_path / "whole.safetensors")
    assert verify(index) == verify(tmp_path / "whole.safetensors")


def test_the_index_is_laid_out_as_other_libraries_read_it(model, index):
    table = json.loads(index.read_text())
    stored = {name: file.name for file in shards(index.parent) for name in load_file(file)}
    assert table["weight_map"] == stored
    assert table["metadata"]["total_size"] == sum(value.nbytes for value in model.state_dict().values())


def test_a_shard_alone_is_no_model_and_names_its_index(index):
    with pytest.raises(CheckpointError, match=r"shard 1 of \d of a model: load .*index\.json"):
        ldmkit.load(shards(index.parent)[0])


@pytest.mark.parametrize("limit", [LIMIT, 10**9], ids=["shards", "one file"])
@pytest.mark.parametrize("before", [LIMIT, 10**9], ids=["over shards", "over one file"])
def test_a_new_model_replaces_the_old_one_whatever_its_form(model, tmp_path, before, limit):
    path = tmp_path / "model.safetensors"
    save(model, path, max_shard_bytes=before)
    new = another()
    written = save(new, path, max_shard_bytes=limit)
    assert equal(ldmkit.load(path), new)
    left = {file.name for file in tmp_path.iterdir()}
    listed = set(json.loads(written.read_text())["weight_map"].values()) if written != path else set()
    assert left == {written.name, *listed}


def test_files_of_others_beside_the_model_stay(model, tmp_path):
    save(model, tmp_path / "other.safetensors", max_shard_bytes=LIMIT)
    second = another()
    save(second, tmp_path / "other-2.safetensors", max_shard_bytes=LIMIT)
    strange = tmp_path / "model-0123abcd-00001-of-00002.safetensors"
    strange.write_text("not ours")
    save(model, tmp_path / "model.safetensors", max_shard_bytes=LIMIT)
    save(model, tmp_path / "model.safetensors")
    assert strange.read_text() == "not ours"
    assert equal(ldmkit.load(tmp_path / "other.safetensors"), model)
    assert equal(ldmkit.load(tmp_path / "other-2.safetensors"), second)


def test_an_index_of_another_program_is_not_touched(model, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": "b.safetensors"}}))
    with pytest.raises(FileExistsError, match="another program"):
        model.save(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="another program"):
        ldmkit.load(index)
    assert [file.name for file in tmp_path.iterdir()] == [index.name]


def changed(index, change):
    table = json.loads(index.read_text())
    change(table)
    index.write_text(json.dumps(table))


def rename_first(index, name):
    """Let the index list its first shard under another name."""
    first = shards(index.parent)[0].name

    def change(table):
        table["metadata"]["ldmkit"]["files"][0] = name
        table["weight_map"] = {key: name if file == first else file for key, file in table["weight_map"].items()}

    changed(index, change)


def forget_first(index):
    """Let the index say nothing of its first shard."""

    def change(table):
        first = table["metadata"]["ldmkit"]["files"].pop(0)
        table["weight_map"] = {key: file for key, file in table["weight_map"].items() if file != first}

    changed(index, change)


def mix(index):
    """Put a shard of another save of the same size in the place of the first."""
    other = index.parent.parent / "other"
    other.mkdir()
    save(another(), other / "model.safetensors", max_shard_bytes=LIMIT)
    shutil.copy(shards(other)[0], shards(index.parent)[0])


INCOMPLETE = {
    "a shard is missing": (lambda index: shards(index.parent)[1].unlink(), "is incomplete"),
    "a shard is cut": (lambda index: os.truncate(shards(index.parent)[0], 5000), "not a readable safetensors file"),
    "a shard of another save": (mix, "not one model"),
    "two shards are swapped": (
        lambda index: (
            shutil.copy(shards(index.parent)[0], index.parent / "x"),
            shutil.copy(shards(index.parent)[1], shards(index.parent)[0]),
            shutil.copy(index.parent / "x", shards(index.parent)[1]),
        ),
        "holds other tensors",
    ),
    "a tensor is listed elsewhere": (
        lambda index: changed(
            index,
            lambda t: t["weight_map"].update(dict.fromkeys(list(t["weight_map"])[:1], shards(index.parent)[-1].name)),
        ),
        "holds other tensors",
    ),
    "a tensor is not listed": (
        lambda index: changed(index, lambda t: t["weight_map"].popitem()),
        "holds other tensors",
    ),
    "a shard is not listed": (forget_first, "not one model"),
    "a shard is listed twice": (
        lambda index: changed(index, lambda t: t["metadata"]["ldmkit"]["files"].append(shards(index.parent)[0].name)),
        "not one model",
    ),
    "no JSON": (lambda index: index.write_text("{"), "cannot be read"),
    "a list": (lambda index: index.write_text("[]"), "cannot be read"),
    "no files": (lambda index: changed(index, lambda t: t["metadata"]["ldmkit"].pop("files")), "cannot be read"),
}


@pytest.mark.parametrize("what", INCOMPLETE)
def test_a_set_that_is_not_whole_is_refused(index, what):
    spoil, message = INCOMPLETE[what]
    spoil(index)
    for read in (ldmkit.load, verify, read_recipe):
        with pytest.raises(CheckpointError, match=message):
            read(index.with_name("model.safetensors"))


def outside(index):
    target = index.parent.parent / "outside.safetensors"
    shutil.copy(shards(index.parent)[0], target)
    return target


def linked(index):
    link = index.parent / "link.safetensors"
    link.symlink_to(outside(index))
    return link.name


def piped(index):
    os.mkfifo(index.parent / "pipe.safetensors")
    return "pipe.safetensors"


def foldered(index):
    (index.parent / "folder").mkdir()
    shutil.copy(shards(index.parent)[0], index.parent / "folder" / "x.safetensors")
    return "folder/x.safetensors"


UNSAFE = {
    "above": lambda index: f"../{outside(index).name}",
    "absolute": lambda index: str(outside(index)),
    "a symbolic link out": linked,
    "a pipe": piped,
    "a folder below": foldered,
    "a folder": lambda index: (foldered(index), "folder")[1],
    "nothing": lambda index: "",
    "itself": lambda index: ".",
    "its parent": lambda index: "..",
    "backslashes": lambda index: "..\\x.safetensors",
}


@pytest.mark.parametrize("what", UNSAFE)
def test_an_index_reaches_regular_files_beside_it_and_nothing_else(index, what):
    rename_first(index, UNSAFE[what](index))
    with pytest.raises(CheckpointError, match="refused"):
        ldmkit.load(index)


def test_a_link_within_the_folder_is_followed(model, index):
    (index.parent / "link.safetensors").symlink_to(shards(index.parent)[0].name)
    rename_first(index, "link.safetensors")
    assert equal(ldmkit.load(index), model)


def test_a_missing_index_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ldmkit.load(tmp_path / "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("call", "message"),
    [({"max_shard_bytes": 0}, "at least 1"), ({"name": "m.safetensors.index.json"}, "the name of an index")],
)
def test_calls_that_make_no_sense_are_refused(model, tmp_path, call, message):
    name = call.pop("name", "m.safetensors")
    with pytest.raises(ValueError, match=message):
        save(model, tmp_path / name, **call)
    assert not list(tmp_path.iterdir())
