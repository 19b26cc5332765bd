"""One file, byte by byte: whatever is wrong with it is told before a tensor is read, and in one kind of error."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import ldmkit
from ldmkit.conditioning import Conditioning
from ldmkit.errors import CheckpointError
from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Part, Recipe
from ldmkit.weights.finite import is_finite
from ldmkit.weights.native import read_recipe, verify
from ldmkit.weights.tensor_file import DTYPES, opened

UNET = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
RECIPE = Recipe(Part("pixel", {"channels": 3}), Part("unet", {**UNET, "num_heads": 1}), Part("vp"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a file of ours."""
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    compose(RECIPE).save(path)
    return path.read_bytes()


@pytest.fixture
def path(saved, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    return path


def with_header(data, change):
    """The file with its header changed as a text."""
    length = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + length].decode().rstrip()).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def with_table(data, change):
    """The file with its header changed as a table."""

    def changed(text):
        table = json.loads(text)
        change(table)
        return json.dumps(table)

    return with_header(data, changed)


def first(table):
    return next(entry for name, entry in table.items() if name != "__metadata__")


def doubled(text):
    table = json.loads(text)
    name, entry = next((n, e) for n, e in table.items() if n != "__metadata__")
    return text[:-1] + f",{json.dumps(name)}:{json.dumps(entry)}}}"


def overlapping(table):
    one, two = [entry for name, entry in table.items() if name != "__metadata__"][:2]
    two["data_offsets"] = [x - two["data_offsets"][0] + one["data_offsets"][0] for x in two["data_offsets"]]


CORRUPT = {
    "empty": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "a header of 2**63 bytes": lambda data: (2**63).to_bytes(8, "little") + data[8:],
    "a header beyond the limit": lambda data: (2**25).to_bytes(8, "little") + b" " * 2**25 + data[8:],
    "a header beyond the file": lambda data: (len(data)).to_bytes(8, "little") + data[8:],
    "a truncated header": lambda data: data[:100],
    "no JSON": lambda data: with_header(data, lambda text: text[:-1]),
    "no UTF-8": lambda data: data[:8] + b"\xff" + data[9:],
    "a list": lambda data: with_header(data, lambda text: "[]"),
    "deep nesting": lambda data: with_header(data, lambda text: "[" * 10**5 + "]" * 10**5),
    "a number of many digits": lambda data: with_header(data, lambda text: "1" * 10**4),
    "a name twice": lambda data: with_header(data, doubled),
    "a name twice inside": lambda data: with_header(
        data, lambda text: text.replace('"dtype":', '"dtype":"U8","dtype":', 1)
    ),
    "an unknown type": lambda data: with_table(data, lambda t: first(t).update(dtype="F7")),
    "an unknown field": lambda data: with_table(data, lambda t: first(t).update(code="os.system")),
    "a missing field": lambda data: with_table(data, lambda t: first(t).pop("shape")),
    "a negative side": lambda data: with_table(data, lambda t: first(t).update(shape=[-1])),
    "a side that is true": lambda data: with_table(data, lambda t: first(t).update(shape=[True])),
    "an overflowing shape": lambda data: with_table(data, lambda t: first(t).update(shape=[2**62, 2**62])),
    "negative offsets": lambda data: with_table(data, lambda t: first(t).update(data_offsets=[-8, 0])),
    "three offsets": lambda data: with_table(data, lambda t: first(t)["data_offsets"].append(1)),
    "an overlap": lambda data: with_table(data, overlapping),
    "a hole": lambda data: with_table(data, lambda t: t.pop(next(n for n in t if n != "__metadata__"))),
    "bytes at the end": lambda data: data + b"\0",
    "truncated tensors": lambda data: data[:-1],
    "metadata that are no texts": lambda data: with_table(data, lambda t: t["__metadata__"].update(x=1)),
    "random bytes": lambda data: bytes((7 * i * i + 3) % 251 for i in range(5000)),
}


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_file_is_refused_by_its_header(path, saved, what):
    path.write_bytes(CORRUPT[what](saved))
    for read in (ldmkit.load, read_recipe, verify):
        with pytest.raises(CheckpointError, match="not a readable safetensors file"):
            read(path)


def test_what_we_write_the_formats_own_library_reads_as_the_same_tensors(path):
    ours = compose(RECIPE).state_dict()
    theirs = load_file(path)
    assert theirs.keys() == ours.keys()
    with safe_open(path, framework="pt") as file, opened(path) as own:
        assert {name: file.get_slice(name).get_shape() for name in theirs} == {
            name: list(entry.shape) for name, entry in own.entries.items()
        }


def test_what_the_formats_own_library_writes_we_read(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    before = ldmkit.load(path).state_dict()
    save_file(load_file(path), path, metadata)
    after = ldmkit.load(path, verify=True).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class Holder(nn.Module):
    """A conditioner with a tensor of any type and an odd size, an empty one, and one in a layout of its own."""

    reads, provides = ("x",), {"vector": 4}

    def __init__(self, dtype="float32"):
        super().__init__()
        self.dtype = dtype
        self.register_buffer("value", torch.tensor([[0, 1, 1]]).to(getattr(torch, dtype)))
        self.register_buffer("none", torch.zeros(0, 3))
        self.register_buffer("one", torch.tensor(5))
        self.picture = nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))

    def forward(self, batch):
        return Conditioning(vector=batch["x"])

    def null(self, batch):
        return Conditioning(vector=torch.zeros_like(batch["x"]))


def holding(dtype):
    ldmkit.register("conditioner", "holder-for-test", Holder, replace=True)
    return LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=3),
        backbone=ldmkit.build("backbone", "unet", **UNET, num_heads=1, vector_dim=4),
        process=ldmkit.build("process", "vp"),
        conditioner={"x": ldmkit.build("conditioner", "holder-for-test", dtype=dtype)},
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_tensor_of_every_type_comes_back(dtype, tmp_path):
    model = holding(str(dtype).removeprefix("torch."))
    told = model.conditioner.sources["x"]
    with torch.no_grad():
        told.picture.copy_(torch.arange(120.0).view(2, 3, 4, 5))
    model.save(tmp_path / "m.safetensors")
    with opened(tmp_path / "m.safetensors") as file:
        assert all(e.start % torch.empty(0, dtype=e.dtype).element_size() == 0 for e in file.entries.values())
    again = ldmkit.load(tmp_path / "m.safetensors", verify=True).conditioner.sources["x"]
    assert again.value.dtype == dtype
    assert again.value.view(torch.uint8).tolist() == told.value.view(torch.uint8).tolist()
    assert again.none.shape == (0, 3)
    assert int(again.one) == 5
    assert torch.equal(again.picture, told.picture)
    assert again.picture.stride() == told.picture.stride()


def test_a_buffer_that_is_computed_keeps_the_type_the_model_was_cast_to(tmp_path):
    class Computed(Holder):
        def __init__(self):
            super().__init__()
            self.register_buffer("waves", torch.linspace(0, 1, 7), persistent=False)

    ldmkit.register("conditioner", "computed-for-test", Computed, replace=True)
    model = holding("float32")
    model.conditioner.sources["x"] = ldmkit.build("conditioner", "computed-for-test")
    model.cast(torch.bfloat16).save(tmp_path / "m.safetensors")
    again = ldmkit.load(tmp_path / "m.safetensors")
    assert again.conditioner.sources["x"].waves.dtype == torch.bfloat16
    assert torch.equal(again.conditioner.sources["x"].waves, model.conditioner.sources["x"].waves)


def test_tensors_that_share_memory_share_it_after_loading(tmp_path):
    class Sharing(Holder):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(4, 4))
            self.register_buffer("first", self.table.data[:1])

    ldmkit.register("conditioner", "sharing-for-test", Sharing, replace=True)
    model = holding("float32")
    model.conditioner.sources["x"] = ldmkit.build("conditioner", "sharing-for-test")
    with torch.no_grad():
        model.conditioner.sources["x"].table.fill_(2)
    model.save(tmp_path / "m.safetensors")
    again = ldmkit.load(tmp_path / "m.safetensors").conditioner.sources["x"]
    assert again.first.tolist() == [[2.0] * 4]
    with torch.no_grad():
        again.table.fill_(3)
    assert again.first.tolist() == [[3.0] * 4]


@pytest.mark.parametrize("where", [0.1, 0.5, 0.999])
def test_one_flipped_bit_of_the_tensors_is_found_by_the_hash(path, saved, where):
    assert verify(path) == json.loads(safe_metadata(path)["ldmkit"])["content"]
    begin = 8 + int.from_bytes(saved[:8], "little")
    at = begin + 4 * int(where * (len(saved) - begin) / 4)  # the lowest bit of a float: still finite
    path.write_bytes(saved[:at] + bytes([saved[at] ^ 1]) + saved[at + 1 :])
    with pytest.raises(CheckpointError, match="not what was written"):
        verify(path)
    with pytest.raises(CheckpointError, match="not what was written"):
        ldmkit.load(path, verify=True)
    ldmkit.load(path)


def test_a_changed_recipe_is_found_by_the_hash(path, saved):
    path.write_bytes(saved.replace(b'\\"prediction\\": \\"eps\\"', b'\\"prediction\\": \\"v\\"  '))
    assert read_recipe(path).prediction == "v"
    with pytest.raises(CheckpointError, match="not what was written"):
        verify(path)


def test_the_hash_is_of_the_model_and_not_of_the_file(tmp_path):
    model = compose(RECIPE)
    model.save(tmp_path / "a.safetensors")
    ldmkit.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert verify(tmp_path / "a.safetensors") == verify(tmp_path / "b.safetensors")
    model.save(tmp_path / "c.safetensors", notes={"seed": 1})
    assert verify(tmp_path / "c.safetensors") != verify(tmp_path / "a.safetensors")


def test_a_file_from_before_the_hash_loads_and_cannot_be_verified(path, saved):
    record = json.loads(safe_metadata(path)["ldmkit"])
    old = {key: record[key] for key in ("library_version", "recipe", "providers", "tied")} | {"format_version": 1}
    save_file(load_file(path), path, {"format": "pt", "ldmkit": json.dumps(old)})
    ldmkit.load(path)
    for call in (lambda: verify(path), lambda: ldmkit.load(path, verify=True)):
        with pytest.raises(CheckpointError, match="save it again"):
            call()


def test_names_and_shapes_are_accounted_for_before_a_tensor_is_read(path, saved):
    def reshaped(table):
        table["denoiser.backbone.nothing"] = table.pop("denoiser.backbone.out.2.bias")
        table["denoiser.backbone.out.0.weight"]["shape"] = [1, 32]
        table["denoiser.backbone.out.0.bias"] |= {"dtype": "I32"}

    # Every weight is NaN as well: had one been read, that would be the complaint.
    spoiled = with_table(saved, reshaped)
    begin = 8 + int.from_bytes(spoiled[:8], "little")
    path.write_bytes(spoiled[:begin] + b"\xff" * (len(spoiled) - begin))
    with pytest.raises(CheckpointError) as error:
        ldmkit.load(path)
    for complaint in (
        "missing denoiser.backbone.out.2.bias",
        "unexpected denoiser.backbone.nothing",
        "out.0.weight: (1, 32) in the file, (32,) in the model",
        "out.0.bias: torch.int32 in the file, torch.float32 in the model",
    ):
        assert complaint in str(error.value)
    assert "finite" not in str(error.value)


def test_data_beyond_its_limit_is_neither_written_nor_read(tmp_path):
    class Wordy(Holder):
        def get_extra_state(self):
            return torch.zeros(2**24 + 1, dtype=torch.uint8)

        def set_extra_state(self, state):
            raise ValueError("unreadable words")

    ldmkit.register("conditioner", "wordy-for-test", Wordy, replace=True)
    model = holding("float32")
    model.conditioner.sources["x"] = ldmkit.build("conditioner", "wordy-for-test")
    with pytest.raises(ldmkit.CompositionError, match="16777217 bytes of data"):
        model.save(tmp_path / "m.safetensors")


def test_data_beyond_its_limit_is_not_read_either(tmp_path, monkeypatch):
    class Long(Holder):
        def get_extra_state(self):
            return torch.zeros(1000, dtype=torch.uint8)

        def set_extra_state(self, state):
            raise AssertionError("it was read")

    ldmkit.register("conditioner", "long-for-test", Long, replace=True)
    model = holding("float32")
    model.conditioner.sources["x"] = ldmkit.build("conditioner", "long-for-test")
    model.save(tmp_path / "m.safetensors")
    monkeypatch.setattr("ldmkit.weights.skeleton.MAX_DATA", 999)
    with pytest.raises(CheckpointError, match="1000 bytes of data"):
        ldmkit.load(tmp_path / "m.safetensors")


def test_data_that_a_part_cannot_read_is_the_files_fault(tmp_path):
    class Mute(Holder):
        def get_extra_state(self):
            return torch.zeros(3, dtype=torch.uint8)

        def set_extra_state(self, state):
            raise KeyError("unreadable words")

    ldmkit.register("conditioner", "mute-for-test", Mute, replace=True)
    model = holding("float32")
    model.conditioner.sources["x"] = ldmkit.build("conditioner", "mute-for-test")
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="unreadable words"):
        ldmkit.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.is_floating_point], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found_anywhere(dtype, bad):
    value = torch.zeros(1000)
    value[777] = bad
    held = value.to(dtype)
    if not held.float()[777].isfinite():  # a type without infinity holds its largest number
        assert not is_finite(held)
        assert is_finite(held, infinity=True) == (not held.float().isnan().any())
    assert is_finite(torch.full((1000,), 200.0).to(dtype))


def test_a_notes_header_that_no_reader_accepts_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="keep large data out of the notes"):
        compose(RECIPE).save(tmp_path / "m.safetensors", notes={"text": "x" * 2**24})
    assert not os.listdir(tmp_path)


def safe_metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()
