"""Our own file: what is saved comes back, anywhere, and what cannot be saved faithfully is refused."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import ldmkit
import ldmkit.conditioners
from ldmkit.builtin import TABLE
from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import DenoisingLoss
from ldmkit.errors import CheckpointError, CompositionError
from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Part, Recipe, Source
from ldmkit.process import VP
from ldmkit.weights.native import read_recipe, without_initialisation, write_atomically

RECIPE = Recipe(
    first_stage=Part("kl", {"channels": 3, "base_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1}),
    backbone=Part(
        "unet",
        {
            "channels": 3,
            "model_channels": 32,
            "channel_mult": [1],
            "num_res_blocks": 1,
            "attention_resolutions": [1],
            "num_heads": 1,
            "context_dim": 8,
        },
    ),
    process=Part("vp", {"betas": "cosine"}),
    prediction="v",
    sources={"class": Source(Part("class-label", {"classes": 3, "width": 8}), drop=0.2)},
)


@pytest.fixture
def model():
    model = compose(RECIPE).eval()
    model.first_stage.scale.fill_(0.7)
    return model


def tensors(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_a_saved_model_comes_back_bit_by_bit(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path, notes={"seed": 3})
    again = ldmkit.load(path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert again.recipe() == model.recipe()
    assert read_recipe(path).notes == {"seed": 3}
    assert not again.training


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_every_prediction_saves_and_loads(model, prediction, tmp_path):
    parts = {"first_stage": model.first_stage, "backbone": model.backbone, "conditioner": model.conditioner}
    LatentDiffusion(**parts, process=VP(), prediction=prediction).save(tmp_path / "m.safetensors")
    assert ldmkit.load(tmp_path / "m.safetensors").denoiser.prediction == prediction


def test_a_file_holds_no_code_and_opens_in_another_process(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    code = (
        "import sys, torch, ldmkit; m = ldmkit.load(sys.argv[1]); "
        "z = m.sample({'label': torch.tensor([1])}, size=(8, 8), levels=3, seed=4); print(repr(float(z.sum())))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    here = float(model.sample({"label": torch.tensor([1])}, size=(8, 8), levels=3, seed=4).sum())
    assert float(run.stdout) == pytest.approx(here, rel=1e-5)


def test_the_file_is_plain_safetensors_with_its_recipe_in_the_metadata(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    assert load_file(path).keys() == model.state_dict().keys()
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["ldmkit"])
    assert record["recipe"]["backbone"]["part"] == "unet"
    assert record["library_version"] == ldmkit.__version__
    assert len(record["content"]) == 64
    assert record["providers"]["ldmkit"] == ldmkit.__version__


def test_tied_tensors_are_stored_once_and_tied_names_come_back(model, tmp_path):
    class Tied(nn.Module):
        reads, provides = ("x",), {"context": 8}

        def __init__(self):
            super().__init__()
            self.one = nn.Linear(8, 8, bias=False)
            self.two = nn.Linear(8, 8, bias=False)
            self.two.weight = self.one.weight

        def forward(self, batch):
            return Conditioning(context=self.two(self.one(batch["x"])))

        def null(self, batch):
            return Conditioning(context=torch.zeros_like(batch["x"]))

    ldmkit.register("conditioner", "tied-for-test", Tied, replace=True)
    parts = {"first_stage": model.first_stage, "backbone": model.backbone, "process": VP("cosine"), "prediction": "v"}
    tied = LatentDiffusion(**parts, conditioner=Tied())
    tied.save(tmp_path / "tied.safetensors")
    stored = load_file(tmp_path / "tied.safetensors")
    assert len([key for key in stored if key.startswith("conditioner")]) == 1
    again = ldmkit.load(tmp_path / "tied.safetensors")
    assert again.conditioner.sources["x"].one.weight is again.conditioner.sources["x"].two.weight
    assert torch.equal(again.conditioner.sources["x"].one.weight, tied.conditioner.sources["x"].one.weight)


class Vocabulary(nn.Module):
    """A conditioner whose words are data: filled from a path once, and from the file ever after."""

    reads, provides = ("word",), {"context": 8}

    def __init__(self):
        super().__init__()
        self.words = []
        self.table = nn.Embedding(4, 8)

    def fill(self, path):
        self.words = path.read_text().split()
        return self

    def forward(self, batch):
        return Conditioning(context=self.table(torch.tensor([[self.words.index(word)] for word in batch["word"]])))

    def null(self, batch):
        return Conditioning(context=torch.zeros(len(batch["word"]), 1, 8))

    def get_extra_state(self):
        return torch.frombuffer(bytearray(" ".join(self.words).encode() or b" "), dtype=torch.uint8)

    def set_extra_state(self, state):
        self.words = bytes(state.tolist()).decode().split()


def test_data_of_a_component_travels_in_the_file(model, tmp_path):
    ldmkit.register("conditioner", "vocabulary-for-test", Vocabulary, replace=True)
    words = tmp_path / "words.txt"
    words.write_text("cat dog bird fish")
    told = LatentDiffusion(
        first_stage=model.first_stage,
        backbone=model.backbone,
        process=VP("cosine"),
        prediction="v",
        conditioner={"word": ldmkit.build("conditioner", "vocabulary-for-test").fill(words)},
    )
    told.save(tmp_path / "m.safetensors")
    words.unlink()
    again = ldmkit.load(tmp_path / "m.safetensors")
    batch = {"word": ["bird", "cat"]}
    torch.testing.assert_close(again.conditioner(batch).context, told.conditioner(batch).context)


class FilledVocabulary(Vocabulary):
    """The same, filled when it is built."""

    filled_by = ("words_from",)

    def __init__(self, words_from=None):
        super().__init__()
        if words_from is not None:
            with open(words_from, encoding="utf-8") as file:
                self.words = file.read().split()


def test_the_place_a_component_was_filled_from_is_not_written_down(model, tmp_path):
    ldmkit.register("conditioner", "filled-for-test", FilledVocabulary, replace=True)
    words = tmp_path / "words.txt"
    words.write_text("cat dog bird fish")
    told = LatentDiffusion(
        first_stage=model.first_stage,
        backbone=model.backbone,
        process=VP("cosine"),
        prediction="v",
        conditioner={"word": ldmkit.build("conditioner", "filled-for-test", words_from=str(words))},
    )
    told.save(tmp_path / "m.safetensors")
    words.unlink()
    assert b"words.txt" not in (tmp_path / "m.safetensors").read_bytes()
    again = ldmkit.load(tmp_path / "m.safetensors")
    batch = {"word": ["fish"]}
    torch.testing.assert_close(again.conditioner(batch).context, told.conditioner(batch).context)


def test_loading_leaves_the_generator_as_it_was(model, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    before = torch.get_rng_state()
    with without_initialisation():
        torch.randn(3)
    ldmkit.load(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "fill", ["uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "zeros_", "ones_"]
)
def test_no_initialiser_writes_to_a_parameter_that_a_file_will_fill(fill):
    weight = nn.Parameter(torch.full((4, 4), 7.0))
    with without_initialisation():
        getattr(nn.init, fill)(weight)
        counted = torch.zeros(2).fill_(3)
    assert bool((weight == 7).all())
    assert counted.tolist() == [3, 3], "buffers are computed as ever"


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (0.1, 5.0), (3.0, 4.0)], ids=str)
def test_an_initialiser_that_draws_until_it_is_in_bounds_ends(bounds):
    weight = nn.Parameter(torch.full((600, 600), 100.0))  # large enough for fresh memory, which is zero
    with without_initialisation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that bounds far from the mean cost precision
        nn.init.trunc_normal_(weight, a=bounds[0], b=bounds[1])


def test_low_precision_weights_keep_their_precision(model, tmp_path):
    model.denoiser.bfloat16()
    model.save(tmp_path / "model.safetensors")
    again = ldmkit.load(tmp_path / "model.safetensors")
    assert next(again.denoiser.parameters()).dtype == torch.bfloat16
    assert next(again.first_stage.parameters()).dtype == torch.float32
    wide = ldmkit.load(tmp_path / "model.safetensors", dtype=torch.float32)
    assert next(wide.denoiser.parameters()).dtype == torch.float32


def test_an_unregistered_part_is_refused_with_the_call_that_helps(model, tmp_path):
    class Mine(nn.Module):
        reads, provides = ("x",), {"context": 8}

        def forward(self, batch):
            return Conditioning(context=batch["x"])

        def null(self, batch):
            return Conditioning(context=torch.zeros_like(batch["x"]))

    mine = LatentDiffusion(
        first_stage=model.first_stage, backbone=model.backbone, process=VP("cosine"), prediction="v", conditioner=Mine()
    )
    with pytest.raises(CompositionError, match=r"Mine is not registered.*ldmkit\.register\('conditioner'"):
        mine.save(tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_part_changed_by_hand_is_refused(model, tmp_path):
    model.backbone.out[2] = nn.Conv2d(32, 5, 3, padding=1)
    with pytest.raises(CompositionError, match=r"denoiser\.backbone\.out"):
        model.save(tmp_path / "model.safetensors")


def test_an_attribute_changed_by_hand_is_refused(model, tmp_path):
    model.first_stage.num_res_blocks = 2
    with pytest.raises(CompositionError, match="was built with"):
        model.save(tmp_path / "model.safetensors")


def rewritten(path, change):
    """The file with its record changed."""
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["ldmkit"])
    change(record)
    save_file(load_file(path), path, {"format": "pt", "ldmkit": json.dumps(record)})


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda path: path.write_bytes(b""), CheckpointError, "not a readable safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), CheckpointError, "not a readable safetensors file"),
        (lambda path: path.unlink(), FileNotFoundError, "there is no file"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), CheckpointError, "no recipe of ldmkit"),
        (lambda path: rewritten(path, lambda r: r.update(format_version=99)), CheckpointError, "upgrade ldmkit"),
        (lambda path: rewritten(path, lambda r: r.pop("recipe")), CheckpointError, "cannot be read"),
        (lambda path: rewritten(path, lambda r: r["recipe"].pop("process")), CheckpointError, "a recipe has the keys"),
        (
            lambda path: rewritten(path, lambda r: r["recipe"]["backbone"].update(part="not-here")),
            ldmkit.UnknownComponentError,
            "unknown backbone 'not-here'",
        ),
        (
            lambda path: rewritten(path, lambda r: r["recipe"]["backbone"]["options"].update(model_channels=64)),
            CheckpointError,
            "in the file",
        ),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(model, tmp_path, spoil, error, message):
    path = tmp_path / "model.safetensors"
    model.save(path)
    spoil(path)
    with pytest.raises(error, match=message):
        ldmkit.load(path)


def test_weights_that_are_not_finite_are_neither_written_nor_read(model, tmp_path):
    path = tmp_path / "m.safetensors"
    model.save(path)
    good = path.read_bytes()
    with torch.no_grad():
        model.backbone.out[2].bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"denoiser\.backbone\.out\.2\.bias: not finite"):
        model.save(path)
    assert path.read_bytes() == good
    tensors = load_file(path)
    tensors["denoiser.backbone.out.2.bias"][0] = float("inf")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=r"denoiser\.backbone\.out\.2\.bias: not finite"):
        ldmkit.load(path)


TOLD = {
    "class-label": ({"classes": 3, "width": 8}, {"context_dim": 8}, {"label": torch.tensor([1])}),
    "class-index": ({"classes": 3}, {"num_classes": 4}, {"label": torch.tensor([1])}),
    "tokens": (
        {"vocabulary": 9, "length": 4, "width": 8, "depth": 1, "null_tokens": (0, 0, 0, 0)},
        {"context_dim": 8},
        {"tokens": torch.tensor([[1, 2, 3, 4]])},
    ),
    "layout": (
        {"classes": 3, "width": 8, "depth": 1, "max_objects": 2, "names": ("a", "b", "c")},
        {"context_dim": 8},
        {"boxes": [[(1, 0.1, 0.2, 0.5, 0.6)]]},
    ),
    "semantic-map": (
        {"classes": 3, "channels": 2, "stages": 1},
        {"concat_channels": 2},
        {"segmentation": torch.zeros(1, 8, 8, dtype=torch.int64)},
    ),
    "low-res": ({"channels": 3}, {"concat_channels": 3}, {"low_res": torch.zeros(1, 3, 4, 4)}),
    "masked-image": (
        {"channels": 3, "order": ("mask", "latent"), "mask_range": (0.0, 1.0), "hole": 0.0},
        {"concat_channels": 4},
        {"masked_image": torch.zeros(1, 3, 8, 8), "mask": torch.ones(1, 1, 8, 8)},
    ),
    "depth": ({"factor": 2}, {"concat_channels": 1}, {"depth": torch.arange(64.0).view(1, 1, 8, 8)}),
    "noised-low-res": (
        {"channels": 3, "levels": 9, "trained_below": 5},
        {"concat_channels": 3, "num_classes": 9},
        {
            "low_res": torch.zeros(1, 3, 4, 4),
            "noise_level": torch.tensor([3]),
            "low_res_noise": torch.ones(1, 3, 4, 4),
        },
    ),
    "noised-embedding": (
        {"size": 4, "mean": (0.5, 0.0, -1.0, 2.0)},
        {"vector_dim": 8},
        {"image_embedding": torch.ones(1, 4)},
    ),
    "precomputed": (
        {"key": "pose", "slot": "vector", "size": 5},
        {"vector_dim": 5},
        {"pose": torch.ones(1, 5)},
    ),
}


@pytest.mark.parametrize("name", sorted(TABLE["conditioner"]))
def test_a_model_with_any_built_in_conditioner_comes_back(model, name, tmp_path):
    options, backbone, batch = TOLD[name]
    unet = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [1]}
    told = LatentDiffusion(
        first_stage=model.first_stage,
        backbone=ldmkit.build("backbone", "unet", **unet, num_heads=1, **backbone),
        process=VP(),
        conditioner=ldmkit.build("conditioner", name, **options),
        objective=DenoisingLoss("l1", elbo_weight=0.01),
    ).eval()
    torch.nn.init.normal_(told.backbone.out[2].weight)
    told.save(tmp_path / "m.safetensors")
    again = ldmkit.load(tmp_path / "m.safetensors")
    call = {"size": (8, 8), "levels": 2, "seed": 1}
    assert torch.equal(again.sample(batch, **call), told.sample(batch, **call))
    assert (again.objective.norm, again.objective.elbo_weight) == ("l1", 0.01)
    assert again.recipe() == told.recipe()


def test_sources_come_back_in_their_order(model, tmp_path):
    unet = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
    told = LatentDiffusion(
        first_stage=model.first_stage,
        backbone=ldmkit.build("backbone", "unet", **unet, num_heads=1, vector_dim=9),
        process=VP(),
        conditioner={
            "z": ldmkit.build("conditioner", "precomputed", key="a", slot="vector", size=4),
            "b": ldmkit.build("conditioner", "precomputed", key="b", slot="vector", size=5),
        },
    ).eval()
    told.save(tmp_path / "m.safetensors")
    batch = {"a": torch.randn(1, 4), "b": torch.randn(1, 5)}
    again = ldmkit.load(tmp_path / "m.safetensors")
    assert torch.equal(again.conditioner(batch).vector, told.conditioner(batch).vector)


def test_a_part_that_a_function_builds_comes_back(model, tmp_path):
    def small_label(classes=3):
        return ldmkit.conditioners.ClassLabel(classes, 8)

    ldmkit.register("conditioner", "function-for-test", small_label, replace=True)
    parts = {"first_stage": model.first_stage, "backbone": model.backbone, "process": VP("cosine"), "prediction": "v"}
    told = LatentDiffusion(**parts, conditioner=ldmkit.build("conditioner", "function-for-test", classes=5))
    told.save(tmp_path / "m.safetensors")
    assert ldmkit.load(tmp_path / "m.safetensors").conditioner.sources["label"].classes == 5


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_file_loads_straight_to_a_device(model, tmp_path, dtype):
    model.denoiser.to(dtype)
    path = tmp_path / "model.safetensors"
    model.save(path)
    again = ldmkit.load(path, device="cuda", verify=True)
    assert {value.device.type for value in (*again.parameters(), *again.buffers())} == {"cuda"}
    assert all(torch.equal(value.cpu(), model.state_dict()[name]) for name, value in again.state_dict().items())
    again.save(path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in ldmkit.load(path).state_dict().items())
