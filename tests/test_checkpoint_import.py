"""A checkpoint of the original becomes a model, with every tensor accounted for before one is read."""

import argparse
import json
import struct
from dataclasses import replace
from functools import cache
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from parity.recipe_weights import recipe_weights
from parity.test_unet import zoo
from torch import nn

import ldmkit
from ldmkit.conditioning import Conditioning
from ldmkit.errors import CheckpointError
from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Part, Recipe, Source
from ldmkit.process import VP
from ldmkit.weights import commands
from ldmkit.weights.importing import import_checkpoint, import_first_stage, imported
from ldmkit.weights.inspecting import inspect
from ldmkit.weights.original import SCHEDULE, account, original_names

STAGE = Part("vq", {"codebook_size": 16, "base_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1})
NETWORK = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [1]}
RECIPE = Recipe(
    first_stage=STAGE,
    backbone=Part("unet", {**NETWORK, "num_heads": 2, "context_dim": 8}),
    process=Part("vp", {}),
    sources={"label": Source(Part("class-label", {"classes": 4, "width": 8}))},
)
PLAIN = replace(RECIPE, backbone=Part("unet", {**NETWORK, "num_heads": 2}), sources={})


def state_of(recipe, average=True):
    """A state dict as the original's training writes one for this model."""
    return {name: value.clone() for name, value in drawn(recipe is RECIPE, average).items()}


@cache
def drawn(conditional, average):
    """The tensors of one of the two models here."""
    recipe = RECIPE if conditional else PLAIN
    model = compose(recipe)
    shapes = {theirs: model.state_dict()[ours].shape for ours, theirs in original_names(model).items()}
    averages = {theirs: model.state_dict()[ours].shape for ours, theirs in original_names(model, ema=True).items()}
    state = recipe_weights({**shapes, **(averages if average else {})}, seed=1)
    state |= {name: torch.zeros(1000) for name in SCHEDULE}
    state |= {"betas": VP().beta.float(), "alphas_cumprod": VP().alpha_bar.float()}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)} if average else {}
    return state


@pytest.fixture
def file(tmp_path):
    """Write a state dict; the path."""

    def write(state, beside=None):
        torch.save({"state_dict": state, **(beside or {})}, tmp_path / "model.ckpt")
        return tmp_path / "model.ckpt"

    return write


def differs(model, state, average):
    """Our names whose tensors are not those of the file."""
    names = original_names(model, ema=average)
    return [ours for ours, theirs in names.items() if not torch.equal(model.state_dict()[ours], state[theirs])]


@pytest.mark.parametrize(("ema", "average"), [("auto", True), ("averaged", True), ("raw", False)])
def test_the_chosen_weights_are_the_files(file, ema, average):
    state = state_of(RECIPE)
    model = import_checkpoint(file(state), recipe=RECIPE, ema=ema)
    assert differs(model, state, average) == []
    assert differs(model, state, not average)
    assert not model.training


def test_a_file_of_one_set_of_weights_is_taken_as_it_is(file):
    state = state_of(RECIPE, average=False)
    assert differs(import_checkpoint(file(state), recipe=RECIPE), state, False) == []
    with pytest.raises(CheckpointError, match="no averaged weights beside the raw ones"):
        import_checkpoint(file(state), recipe=RECIPE, ema="averaged")
    only = RECIPE.with_notes({"ema": "only"})
    assert differs(import_checkpoint(file(state), recipe=only, ema="averaged"), state, False) == []
    with pytest.raises(CheckpointError, match="the averaged weights alone"):
        import_checkpoint(file(state), recipe=only, ema="raw")


def test_the_format_of_the_file_makes_no_difference(file, tmp_path):
    state = state_of(RECIPE)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    first, *others = (
        import_checkpoint(path, recipe=RECIPE).state_dict()
        for path in (file(state), tmp_path / "model.safetensors", tmp_path / "old.ckpt")
    )
    assert all(torch.equal(other[name], value) for other in others for name, value in first.items())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("loss.discriminator.main.0.weight", "discriminator"),
        ("ddim_sigmas", "a sampler"),
        ("low_scale_model.betas", "low-resolution image"),
        ("depth_model.model.weight", "depth maps come from the user"),
        ("embedder.model.weight", "embeddings come from the user"),
        ("cond_stage_model.transformer.text_model.embeddings.position_ids", "no weights"),
        ("lvlb_weights", "the loss"),
    ],
)
def test_what_has_no_place_is_ignored_by_name_with_a_reason(file, name, why):
    report = imported(file(state_of(RECIPE) | {name: torch.zeros(3)}), recipe=RECIPE).report
    assert why in report.account.ignored[name]
    assert why in str(report)


def test_the_report_accounts_for_every_tensor_once(file):
    state = state_of(RECIPE) | {"ddim_sigmas": torch.zeros(2)}
    report = imported(file(state, {"callbacks": {}, "optimizer_states": []}), recipe=RECIPE).report
    used, ignored = set(report.account.used.values()), set(report.account.ignored)
    assert used | ignored == set(state)
    assert not used & ignored
    assert set(report.others) == {"callbacks", "optimizer_states"}
    assert report.account.renamed == report.account.used
    assert "averaged weights" in str(report)
    assert "state of the optimizer" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise.weight": torch.zeros(1)}, "unexpected surprise.weight"),
        ({"first_stage_model.quant_conv.bias": torch.zeros(7)}, r"\(7,\), here \(3,\)"),
        ({"first_stage_model.quant_conv.bias": torch.zeros(3, dtype=torch.int64)}, r"torch.int64, here torch.float32"),
        ({"cond_stage_model.embedding.weight": None}, "missing cond_stage_model.embedding.weight"),
        ({"model_ema.diffusion_modelout2bias": None}, "missing model_ema.diffusion_modelout2bias"),
        ({"alphas_cumprod": VP("cosine").alpha_bar}, "another schedule"),
        ({"betas": VP().beta * float("nan")}, "another schedule"),
        ({"scale_factor": torch.tensor(-1.0)}, "one positive number"),
        ({"logvar": torch.zeros(1000)}, "learn_log_variance=True"),
        ({"first_stage_model.quant_conv.bias": torch.tensor([1.0, float("nan"), 1])}, "not finite: .*quant_conv.bias"),
        ({"cond_stage_model.embedding.weight": torch.full((5, 8), float("inf"))}, "not finite: cond_stage_model"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(file, change, message):
    state = {name: value for name, value in (state_of(RECIPE) | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(file(state), recipe=RECIPE)


def test_what_does_not_fit_is_listed_to_twenty(file):
    state = state_of(RECIPE) | {f"surprise.{n}": torch.zeros(1) for n in range(70)}
    with pytest.raises(CheckpointError, match=r"70 tensors do not fit .*, and 50 more"):
        import_checkpoint(file(state), recipe=RECIPE)


def test_what_may_be_missing_is_initialised_and_what_may_be_there_is_left(file):
    state = state_of(RECIPE) | {"surprise.weight": torch.zeros(1)}
    del state["cond_stage_model.embedding.weight"]
    torch.manual_seed(0)
    done = imported(file(state), recipe=RECIPE, allow_missing=["cond_stage_model."], allow_unexpected=["surprise."])
    assert done.report.account.missing == ["cond_stage_model.embedding.weight"]
    assert done.report.account.unexpected == ["surprise.weight"]
    table = done.model.state_dict()["conditioner.sources.label.embedding.weight"]
    assert 0.5 < table.std() < 2  # as nn.Embedding draws it, and not what lay in memory


def test_weights_that_are_not_finite_are_taken_where_that_is_asked_for(file):
    state = state_of(RECIPE)
    state["first_stage_model.quant_conv.bias"][1] = float("nan")
    model = import_checkpoint(file(state), recipe=RECIPE, allow_not_finite=True)
    assert model.first_stage.quant_conv.bias.isnan().tolist() == [False, True, False]


def test_the_scale_in_the_file_wins_and_is_told(file):
    done = imported(file(state_of(RECIPE) | {"scale_factor": torch.tensor(0.22)}), recipe=RECIPE)
    assert float(done.model.first_stage.scale) == pytest.approx(0.22)
    assert "is the file's, 0.22; composed with 1" in str(done.report)


def test_a_first_stage_that_is_the_conditioner_too_is_loaded_once(file):
    state = state_of(PLAIN)
    twin = {name.replace("first_stage_model.", "cond_stage_model."): v for name, v in state.items() if "stage" in name}
    report = imported(file(state | twin), recipe=PLAIN).report
    assert {report.account.ignored[name] for name in twin} == {"the first stage once more"}
    other = {name: value + 1 for name, value in twin.items()}
    with pytest.raises(CheckpointError, match="unexpected cond_stage_model"):
        import_checkpoint(file(state | other), recipe=PLAIN)


def test_precision_is_the_files_or_the_one_asked_for(file):
    half = {name: value.half() if value.is_floating_point() else value for name, value in state_of(RECIPE).items()}
    half |= {"betas": VP().beta.float(), "alphas_cumprod": VP().alpha_bar.float()}
    half["model_ema.diffusion_modelout2bias"] = half["model_ema.diffusion_modelout2bias"].double()
    model = import_checkpoint(file(half), recipe=RECIPE)
    assert {p.dtype for p in model.first_stage.parameters()} == {torch.float16}
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}  # its parts have one precision
    cast = import_checkpoint(file(half), recipe=RECIPE, dtype=torch.bfloat16)
    assert {p.dtype for p in cast.denoiser.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in cast.first_stage.parameters()} == {torch.float16}
    assert cast.first_stage.scale.dtype == torch.float32


def test_the_composition_is_said_once(file, tmp_path):
    with pytest.raises(ValueError, match="said twice"):
        import_checkpoint(file(state_of(PLAIN)), recipe=PLAIN, config=tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="'averaged' or 'raw', got 'ema'"):
        import_checkpoint(file(state_of(PLAIN)), recipe=PLAIN, ema="ema")


def test_a_model_that_nobody_published_needs_a_composition(file):
    with pytest.raises(CheckpointError, match="is none of the published models: say which"):
        import_checkpoint(file(state_of(PLAIN)))


def test_a_file_of_ours_is_not_imported(tmp_path):
    compose(PLAIN).save(tmp_path / "ours.safetensors")
    with pytest.raises(CheckpointError, match=r"use ldmkit\.load"):
        import_checkpoint(tmp_path / "ours.safetensors")
    assert "unet" in inspect(tmp_path / "ours.safetensors")


class Renamed(nn.Module):
    """A conditioner whose tensors are called otherwise in files of the original, and whose words are not in them."""

    reads = ("prompt",)
    provides: ClassVar = {"context": 8}

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 8)

    def forward(self, batch):
        return Conditioning(context=self.table.weight.expand(len(batch["prompt"]), -1, -1))

    def null(self, batch):
        return self(batch)

    def claims(self, names):
        known = {"embedder.words": "table.weight", "embedder.positions": None}
        return {theirs: own for theirs, own in known.items() if theirs in names}

    def get_extra_state(self):
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state):
        pass


def test_a_conditioner_may_say_what_its_tensors_are_called():
    plain = compose(replace(RECIPE, sources={"label": Source(Part("class-label", {"classes": 4, "width": 8}))}))
    model = LatentDiffusion(
        first_stage=plain.first_stage, backbone=plain.backbone, process=plain.process, conditioner={"text": Renamed()}
    )
    given = {theirs: model.state_dict()[ours] for ours, theirs in original_names(model).items()}
    given["embedder.words"] = given.pop("cond_stage_model.table.weight")
    found = account(model, {**given, "embedder.positions": torch.zeros(3)}, False, lambda a, b: False)
    found.check()
    assert found.used["conditioner.sources.text.table.weight"] == "embedder.words"
    assert "embedder.positions" in found.ignored
    assert not any("extra_state" in ours for ours in found.used)


def stage_state(average):
    """A first stage's own file: no prefix, its losses beside."""
    names = ldmkit.registry.build_part("first-stage", STAGE).state_dict()
    shapes = {name: value.shape for name, value in names.items() if name != "scale"}
    means = {f"model_ema.{name.replace('.', '')}": shape for name, shape in shapes.items()} if average else {}
    return recipe_weights({**shapes, **means, "loss.perceptual_loss.net.weight": (3, 3), "loss.logvar": ()}, seed=2)


@pytest.mark.parametrize("average", [True, False])
def test_a_first_stage_comes_out_of_its_own_file(file, average):
    state = stage_state(average)
    stage = import_first_stage(file(state), STAGE)
    name = "model_ema.quant_convweight" if average else "quant_conv.weight"
    assert torch.equal(stage.quant_conv.weight, state[name])
    assert torch.equal(import_first_stage(file(state), STAGE, ema="raw").quant_conv.weight, state["quant_conv.weight"])
    assert not stage.training


def test_a_first_stage_comes_out_of_a_whole_models_file(file):
    state = state_of(RECIPE)
    stage = import_first_stage(file(state), STAGE)
    assert torch.equal(stage.quant_conv.weight, state["first_stage_model.quant_conv.weight"])


def test_a_first_stage_that_does_not_fit_is_refused(file):
    state = stage_state(False)
    with pytest.raises(CheckpointError, match="unexpected surprise"):
        import_first_stage(file(state | {"surprise": torch.zeros(1)}), STAGE)
    with pytest.raises(CheckpointError, match="no averaged weights of the first stage"):
        import_first_stage(file(state), STAGE, ema="averaged")
    with pytest.raises(CheckpointError, match="none of the published ones"):
        import_first_stage(file(state))
    del state["quant_conv.bias"]
    with pytest.raises(CheckpointError, match=r"missing quant_conv\.bias"):
        import_first_stage(file(state), STAGE)


def published(name):
    """A published model's file without its numbers: as large on paper, and a hole on the disk."""
    shapes = {key: shape for key, (shape, _) in zoo()[name].items()}
    header, place = {}, 0
    for key, shape in shapes.items():
        nbytes = 4 * torch.Size(shape).numel()
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + nbytes]}
        place += nbytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text, place


@pytest.fixture
def hollow(tmp_path):
    """Write the file of a published model without its numbers."""

    def write(name):
        head, size = published(name)
        path = tmp_path / f"{name.replace('/', '-')}.safetensors"
        path.write_bytes(head)
        with path.open("r+b") as stream:
            stream.truncate(len(head) + size)
        return path

    return write


def test_a_published_file_is_recognised_without_reading_a_weight(hollow):
    said = inspect(hollow("ldm/lsun_churches256"))
    assert "is       'lsun-churches'" in said
    assert "model.diffusion_model." in said
    assert "the first stage 'kl-f8'" in inspect(hollow("first_stage/kl-f8"))


def test_twins_are_listed_and_not_guessed(hollow):
    with pytest.raises(CheckpointError, match=r"may be any of \['celebahq', 'ffhq', 'lsun-beds'\]"):
        import_checkpoint(hollow("ldm/celeba256"))


def run(*words):
    """One command."""
    parser = argparse.ArgumentParser()
    commands.add(parser.add_subparsers(dest="command", required=True))
    return commands.run(parser.parse_args([str(word) for word in words]))


def test_a_shell_inspects(file):
    said = run("inspect", file(state_of(RECIPE), {"global_step": 12, "callbacks": {}}))
    for what in (
        "a pickle in a zip archive",
        "first_stage_model.",
        "callbacks: state of",
        "global_step: 12",
        "raw and av",
    ):
        assert what in said


def test_a_shell_converts_what_it_recognises(file, tmp_path, monkeypatch):
    monkeypatch.setattr("ldmkit.weights.importing.candidates", lambda shapes: ["tiny"])
    monkeypatch.setattr("ldmkit.weights.importing.recipe_by_name", lambda name: RECIPE)
    state = state_of(RECIPE)
    assert "recipe 'tiny', recognised" in run("convert", file(state), tmp_path / "out.safetensors")
    assert differs(ldmkit.load(tmp_path / "out.safetensors"), state, True) == []


def test_a_shell_verifies(tmp_path):
    path = tmp_path / "ours.safetensors"
    compose(PLAIN).save(path)
    assert "those that were written" in run("verify", path)
    written = bytearray(path.read_bytes())
    written[-1] ^= 1
    path.write_bytes(written)
    with pytest.raises(CheckpointError):
        run("verify", path)


def test_a_number_that_a_dtype_cannot_hold_is_refused(file):
    state = state_of(PLAIN, average=False)
    state["model.diffusion_model.out.2.bias"][0] = 1e6
    assert import_checkpoint(file(state), recipe=PLAIN, dtype=torch.bfloat16).backbone.out[2].bias.isfinite().all()
    with pytest.raises(CheckpointError, match=r"out\.2\.bias"):
        import_checkpoint(file(state), recipe=PLAIN, dtype=torch.float16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"allow_missing": "cond_stage_model."}, "allow_missing"),
        ({"allow_unexpected": "x"}, "allow_unexpected"),
        ({"recipe": {"first_stage": "kl"}}, "a name or a Recipe, got dict"),
    ],
)
def test_an_argument_of_another_kind_is_refused(file, given, message):
    with pytest.raises(TypeError, match=message):
        import_checkpoint(file(state_of(PLAIN)), **{"recipe": PLAIN, **given})
