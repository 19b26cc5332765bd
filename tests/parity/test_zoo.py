"""Every published checkpoint's keys and shapes are exactly those of its recipe; no weight is allocated.

``zoo_state_dicts.json.gz`` lists them, from the original's own classes. Text encoders of other libraries are not in it.
"""

import ast
import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import ldmkit
from ldmkit.conditioners import Tokens
from ldmkit.model import LatentDiffusion
from ldmkit.recipes import FIRST_STAGES, PUBLISHED, first_stage
from ldmkit.registry import build_part
from ldmkit.weights.original import SCHEDULE, original_names
from parity.fingerprints import shapes

with gzip.open(Path(__file__).with_name("zoo_state_dicts.json.gz")) as file:
    ZOO = {name: {key: tuple(shape) for key, (shape, _) in entry.items()} for name, entry in json.load(file).items()}

STABLE_DIFFUSION = {
    "sd_v1": "sd-1",
    "sd_v2": "sd-2-base",
    "sd_v2_v": "sd-2-v",
    "sd_v2_inpainting": "sd-2-inpainting",
    "sd_x4_upscaler": "sd-x4-upscaler",
    "sd_v2_depth": "sd-2-depth",
}
LDM = {ldmkit.recipe(name).notes["published_as"]: name for name in PUBLISHED}
MODELS = {f"sd/{entry}": name for entry, name in STABLE_DIFFUSION.items()}
MODELS |= {entry: LDM[entry.removeprefix("ldm/").removeprefix("rdm-")] for entry in ZOO if entry.startswith("ldm/")}
ELSEWHERE = ("clip-text", "openclip-text")


class Elsewhere(nn.Module):
    """In place of a text encoder of another library: the same slot, no tensors."""

    reads = ("prompt",)

    def __init__(self, width):
        super().__init__()
        self.provides = {"context": width}

    def forward(self, batch):
        raise NotImplementedError

    def null(self, batch):
        raise NotImplementedError


def source(part, width):
    if part.name in ELSEWHERE:
        return Elsewhere(width)
    if part.name == "bert-text" and part.name not in ldmkit.names("conditioner"):
        return Tokens(length=77, **part.options)  # its transformer; the tokenizer around it is a plug-in's
    return build_part("conditioner", part)


def composed(name):
    recipe = ldmkit.recipe(name)
    with torch.device("meta"):
        backbone = build_part("backbone", recipe.backbone)
        parts = {key: source(one.part, backbone.context_dim) for key, one in recipe.sources.items()}
        return LatentDiffusion(
            first_stage=build_part("first-stage", recipe.first_stage),
            backbone=backbone,
            process=build_part("process", recipe.process),
            prediction=recipe.prediction,
            conditioner=parts or None,
        )


def expected(name):
    """Name in the file -> shape of everything that the recipe says such a file holds."""
    model, notes = composed(name), ldmkit.recipe(name).notes
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.endswith("_extra_state")}
    named = {theirs: ours[key] for key, theirs in original_names(model).items() if key in ours}
    if notes["ema"] == "beside":
        named |= {theirs: ours[key] for key, theirs in original_names(model, ema=True).items() if key in ours}
        named |= {"model_ema.decay": (), "model_ema.num_updates": ()}
    if "cond_stage_model." in notes["unused"]:
        stage = {key: shape for key, shape in named.items() if key.startswith("first_stage_model.")}
        named |= {key.replace("first_stage_model.", "cond_stage_model.", 1): shape for key, shape in stage.items()}
    return named


def test_every_entry_belongs_to_a_recipe():
    assert {f"first_stage/{name}" for name in FIRST_STAGES} | MODELS.keys() == ZOO.keys()
    assert set(PUBLISHED) - set(MODELS.values()) == {"sd-1-inpainting", "sd-2-unclip-h", "sd-2-unclip-l"}


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_first_stage_has_exactly_the_published_tensors(name):
    assert shapes("first-stage", first_stage(name)) == ZOO[f"first_stage/{name}"]


@pytest.mark.parametrize("entry", MODELS)
def test_a_model_has_exactly_the_published_tensors(entry):
    published = {key: shape for key, shape in ZOO[entry].items() if key not in SCHEDULE}
    scale = {"scale_factor": ()} if MODELS[entry] == "lsun-churches" else {}
    assert expected(MODELS[entry]) | scale == published


@pytest.mark.parametrize("entry", [entry for entry in MODELS if entry.startswith("ldm/")])
def test_the_schedule_has_the_published_length(entry):
    process = build_part("process", ldmkit.recipe(MODELS[entry]).process)
    assert ZOO[entry].keys() >= SCHEDULE
    assert {ZOO[entry][key] for key in SCHEDULE} == {(process.steps,)}


@pytest.mark.parametrize(("name", "channels"), [("sd-1-inpainting", 9), ("sd-2-inpainting", 9), ("sd-2-depth", 5)])
def test_models_with_more_channels_differ_from_their_ancestor_in_one_tensor(name, channels):
    ancestor, descendant = expected(name.rpartition("-")[0].replace("sd-2", "sd-2-base")), expected(name)
    assert ancestor.keys() == descendant.keys()
    different = {key: shape for key, shape in descendant.items() if shape != ancestor[key]}
    assert different == {"model.diffusion_model.input_blocks.0.0.weight": (320, channels, 3, 3)}


@pytest.mark.parametrize(("name", "millions"), [("sd-2-unclip-h", 870.173), ("sd-2-unclip-l", 869.518)])
def test_the_networks_for_image_embeddings_have_the_published_size(name, millions):
    network = shapes("backbone", ldmkit.recipe(name).backbone)
    assert len(network) == 690
    assert round(sum(torch.Size(shape).numel() for shape in network.values()) / 1e6, 3) == millions


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_fits_its_task_and_is_called_with_what_the_task_takes(name):
    notes = ldmkit.recipe(name).notes
    pipe = ldmkit.Pipeline(ldmkit.build("task", notes["task"]), composed(name))
    (call,) = ast.parse(f"pipe({notes['inputs']})").body
    assert {keyword.arg for keyword in call.value.keywords} <= set(pipe.task.takes)


@pytest.mark.skipif(
    not {*ELSEWHERE, "bert-text"} <= set(ldmkit.names("conditioner")), reason="needs the plug-ins for text"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_composes_as_a_whole_where_its_plug_ins_are_installed(name):
    recipe = ldmkit.recipe(name)
    with torch.device("meta"):
        written = recipe.build().recipe()
    assert list(written.sources) == list(recipe.sources)
    assert all(
        (written.sources[key].drop, written.sources[key].guided) == (one.drop, one.guided)
        for key, one in recipe.sources.items()
    )
