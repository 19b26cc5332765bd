"""Two whole models of the original: composed here, filled from the original's state dict, sampled and decoded."""

import json
from dataclasses import replace

import pytest
import torch

import ldmkit
from ldmkit.errors import CheckpointError
from ldmkit.guidance import CFG
from ldmkit.model import compose
from ldmkit.parts import Part, Recipe, Source
from ldmkit.process import VP
from ldmkit.weights.original import SCHEDULE, load_original, original_names
from parity.recipe_weights import RECORDED, arrays, recipe_weights, relative_error

FIRST_STAGE = Part(
    "vq",
    {
        "channels": 3,
        "codebook_size": 64,
        "z_channels": 3,
        "base_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "resolution": 32,
        "attn_resolutions": [],
    },
)
UNET = {
    "channels": 3,
    "model_channels": 32,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
}
PROCESS = Part("vp", {"start": 0.0015, "end": 0.0195})
RECIPES = {
    "e2e_class_cfg": Recipe(
        first_stage=FIRST_STAGE,
        backbone=Part("unet", {**UNET, "context_dim": 24, "num_heads": 4}),
        process=PROCESS,
        sources={"class": Source(Part("class-label", {"classes": 10, "width": 24}))},
    ),
    "e2e_superres": Recipe(
        first_stage=FIRST_STAGE,
        backbone=Part("unet", {**UNET, "concat_channels": 3, "head_channels": 32}),
        process=PROCESS,
        sources={"low_res": Source(Part("low-res", {}))},
    ),
}


def checkpoint(name):
    """The recorded model's state dict: tensors by the weight recipe, schedule buffers from its process."""
    entry = json.loads((RECORDED / f"{name}.json").read_text())
    state = recipe_weights(entry["state_dict"], entry["weights_seed"])
    process = VP(start=0.0015, end=0.0195)
    state |= {"betas": process.beta.float(), "alphas_cumprod": process.alpha_bar.float()}
    if "scale_factor" in state:
        state["scale_factor"] = torch.tensor(0.75)
    return state, entry


def whole_model(name):
    state, entry = checkpoint(name)
    model = compose(RECIPES[name]).eval()
    load_original(model, state, ema=entry["ema"])
    return model, entry, arrays(name)


def batch(recorded):
    if "class_label" in recorded:
        return {"label": recorded["class_label"].long()}
    return {"low_res": recorded["low_res"]}


@pytest.mark.parametrize("name", RECIPES)
def test_latents_match_the_original(name):
    model, entry, recorded = whole_model(name)
    z = model.sample(
        batch(recorded),
        size=(32, 32),
        levels=entry["steps"],
        guidance=CFG(entry["guidance_scale"]),
        start=recorded["x_T"],
    )
    assert relative_error(z, recorded["latent"]) < 1e-5


@pytest.mark.parametrize("name", RECIPES)
def test_the_recorded_latent_decodes_to_the_recorded_image(name):
    model, _, recorded = whole_model(name)
    assert relative_error(model.decode(recorded["latent"]), recorded["image"]) < 1e-4


TASKS = {"e2e_class_cfg": "class-conditional", "e2e_superres": "super-resolution"}


def through_the_pipeline(name, output_type):
    model, entry, recorded = whole_model(name)
    if "class_label" in recorded:
        inputs = {"label": recorded["class_label"].long(), "height": 32, "width": 32}
    else:
        inputs = {"image": recorded["low_res"] / 2 + 0.5}
    out = ldmkit.pipeline(TASKS[name], model)(
        **inputs,
        num_inference_steps=entry["steps"],
        guidance_scale=entry["guidance_scale"],
        latents=recorded["x_T"],
        output_type=output_type,
        progress=False,
    )
    return out, recorded


@pytest.mark.parametrize("name", RECIPES)
def test_latents_of_a_pipeline_match_the_original(name):
    out, recorded = through_the_pipeline(name, "latent")
    assert relative_error(out.latents, recorded["latent"]) < 1e-5


@pytest.mark.parametrize("name", RECIPES)
def test_images_of_a_pipeline_match_the_original_after_clamping(name):
    out, recorded = through_the_pipeline(name, "pt")
    assert relative_error(out.images, (recorded["image"] / 2 + 0.5).clamp(0, 1)) < 1e-4


@pytest.mark.parametrize("name", RECIPES)
def test_every_tensor_of_the_checkpoint_is_accounted_for(name):
    model, _, _ = whole_model(name)
    state, entry = checkpoint(name)
    named = {*original_names(model).values(), *original_names(model, ema=True).values()}
    assert set(entry["state_dict"]) - named - SCHEDULE <= {"model_ema.decay", "model_ema.num_updates", "scale_factor"}
    assert named <= set(state)


def test_the_scale_in_the_file_wins():
    state, _ = checkpoint("e2e_class_cfg")
    state["scale_factor"] = torch.tensor(0.75)
    model = compose(RECIPES["e2e_class_cfg"])
    load_original(model, state)
    assert float(model.first_stage.scale) == 0.75


def test_a_learned_log_variance_is_loaded_where_the_model_has_one():
    state, _ = checkpoint("e2e_class_cfg")
    state["logvar"] = torch.linspace(-1, 1, 1000)
    recipe = replace(RECIPES["e2e_class_cfg"], objective={"learn_log_variance": True, "times": 1000})
    model = compose(recipe)
    load_original(model, state)
    assert torch.equal(model.objective.log_variance.detach(), state["logvar"])


def test_ema_and_raw_weights_differ_and_both_load():
    state, _ = checkpoint("e2e_class_cfg")
    model = compose(RECIPES["e2e_class_cfg"])
    load_original(model, state, ema=True)
    averaged = model.backbone.input_blocks[0][0].weight.clone()
    load_original(model, state, ema=False)
    assert not torch.equal(averaged, model.backbone.input_blocks[0][0].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model_ema.diffusion_modelout2bias"), "missing model_ema.diffusion_modelout2bias"),
        (lambda state: state.update({"surprise.weight": torch.zeros(1)}), "unexpected surprise.weight"),
        (lambda state: state.update({"first_stage_model.quant_conv.bias": torch.zeros(7)}), r"\(7,\), here \(3,\)"),
        (lambda state: state.update({"alphas_cumprod": VP("cosine").alpha_bar}), "another schedule"),
        (lambda state: state.update({"betas": VP().beta[:10]}), "'betas' differs"),
        (lambda state: state.update({"scale_factor": torch.zeros(3)}), "one positive number"),
        (lambda state: state.update({"logvar": torch.zeros(1000)}), "learn_log_variance=True, times=1000"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, message):
    state, _ = checkpoint("e2e_class_cfg")
    change(state)
    model = compose(RECIPES["e2e_class_cfg"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_original(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
