"""Conditioners against recorded outputs of the original and the names and shapes of the published checkpoints.

``zoo_state_dicts.json.gz`` holds ``{model: {key: [shape, dtype]}}``, listed from the state dicts of the original's
classes under the published configurations.
"""

import gzip
import json
from pathlib import Path

import pytest
import torch

from ldmkit.conditioners import Box, ClassLabel, Layout, LayoutTokenizer, Point, SemanticMap, Tokens, Vocabulary
from parity.recipe_weights import arrays, index, recipe_weights, relative_error

PUBLISHED = {
    "ldm/cin256": lambda: ClassLabel(1000, 512, null_class=False),
    "ldm/cin256-v2": lambda: ClassLabel(1000, 512),
    "ldm/text2img256": lambda: Tokens(30522, 77, 640, 32),
    "ldm/txt2img-1p4B-eval": lambda: Tokens(30522, 77, 1280, 32),
    "ldm/layout2img-openimages256": lambda: Layout(340, 512, 16, flags=("group", "occluded", "depiction", "inside")),
    "ldm/semantic_synthesis256": lambda: SemanticMap(182, 3, 2),
    "ldm/semantic_synthesis512": lambda: SemanticMap(182, 3, 2),
}


@pytest.fixture(scope="module")
def zoo():
    with gzip.open(Path(__file__).parent / "zoo_state_dicts.json.gz") as file:
        return json.load(file)


@pytest.mark.parametrize("model", PUBLISHED)
def test_names_and_shapes_are_those_of_the_published_checkpoint(model, zoo):
    prefix = "cond_stage_model."
    published = {key.removeprefix(prefix): s[0] for key, s in zoo[model].items() if key.startswith(prefix)}
    with torch.device("meta"):
        ours = PUBLISHED[model]().state_dict()
    assert {key: list(value.shape) for key, value in ours.items()} == published


def test_tokens_match_the_original():
    recorded, given = index()["conditioner_bert"], arrays("conditioner_bert")
    conditioner = Tokens(100, 16, 32, 2)
    conditioner.load_state_dict(recipe_weights(recorded["state_dict"], recorded["weights_seed"]))
    with torch.no_grad():
        assert relative_error(conditioner({"tokens": given["tokens"]}).context, given["out"]) < 1e-5


def test_semantic_map_matches_the_original():
    recorded, given = index()["conditioner_spatial_rescaler"], arrays("conditioner_spatial_rescaler")
    conditioner = SemanticMap(12, 3, 2)
    conditioner.load_state_dict(recipe_weights(recorded["state_dict"], recorded["weights_seed"]))
    with torch.no_grad():
        assert relative_error(conditioner({"segmentation": given["x"]}).concat, given["out"]) < 1e-5


def recorded_boxes():
    recorded = index()["layout_openimages"]
    names = ("group", "occluded", "depiction", "inside")
    told = zip(
        recorded["boxes"], recorded["categories"], recorded["flags_group_occluded_depiction_inside"], strict=True
    )
    boxes = [
        Box(label, x, y, x + w, y + h, tuple(name for name, flag in zip(names, flags, strict=True) if flag))
        for (x, y, w, h), label, flags in told
    ]
    x, y, w, h = recorded["crop"]
    return boxes, (x, y, x + w, y + h)


@pytest.mark.parametrize("kind", [Box, Point])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("cropped", [False, True])
def test_layout_tokens_are_exactly_those_of_the_original(kind, flip, cropped):
    boxes, crop = recorded_boxes()
    crop = crop if cropped else (0.0, 0.0, 1.0, 1.0)
    objects = boxes if kind is Box else [box.centre() for box in boxes if box.shown(crop)]
    tokens = LayoutTokenizer(kind, Vocabulary(600, flags=("group",))).encode(objects, crop, flip)
    name = {Box: "bbox", Point: "center"}[kind]
    expected = arrays("layout_openimages")[f"{name}_flip{flip:d}_crop{cropped:d}"]
    assert tokens == expected.tolist()
