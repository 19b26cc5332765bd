"""Laws that every built-in conditioner keeps."""

import inspect

import pytest
import torch

from ldmkit.conditioners import (
    ClassIndex,
    ClassLabel,
    Layout,
    LowRes,
    MaskedImage,
    NoisedLowRes,
    Precomputed,
    SemanticMap,
    Tokens,
)
from ldmkit.conditioning import Conditioner

LAYOUT = {"classes": 5, "width": 12, "depth": 2, "tokens": 64, "max_objects": 3, "heads": 2, "head_width": 4}
BOXES = [[(0, 0.1, 0.2, 0.5, 0.9), (4, 0.0, 0.0, 1.0, 1.0)], [], [(2, 0.3, 0.3, 0.4, 0.8)]]
POINTS = [[(0, 0.1, 0.2)], [(1, 0.0, 1.0), (4, 0.5, 0.5)], []]

CASES = {
    "class-label token": (ClassLabel, {"classes": 4, "width": 6}, {"label": torch.tensor([0, 3, 1])}),
    "class-label vector": (
        ClassLabel,
        {"classes": 4, "width": 6, "slot": "vector", "names": ("a", "b", "c", "d")},
        {"label": torch.tensor([0, 3, 1])},
    ),
    "class-index": (ClassIndex, {"classes": 4}, {"label": torch.tensor([0, 3, 1], dtype=torch.int32)}),
    "tokens": (
        Tokens,
        {
            "vocabulary": 9,
            "length": 5,
            "width": 12,
            "depth": 2,
            "heads": 2,
            "head_width": 4,
            "null_tokens": (1, 2, 0, 0, 0),
        },
        {"tokens": torch.arange(15).reshape(3, 5) % 9},
    ),
    "layout of boxes": (Layout, LAYOUT, {"boxes": BOXES}),
    "layout of points": (Layout, {**LAYOUT, "objects": "points"}, {"points": POINTS}),
    "layout with crops": (
        Layout,
        {**LAYOUT, "flags": ("group",)},
        {"boxes": BOXES, "crop": torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.2, 0.1, 1.0, 0.6], [0.0, 0.0, 1.0, 1.0]])},
    ),
    "layout without crop tokens": (Layout, {**LAYOUT, "crop_tokens": False}, {"boxes": BOXES}),
    "semantic-map": (
        SemanticMap,
        {"classes": 5, "channels": 2, "stages": 2},
        {"segmentation": torch.arange(3 * 8 * 12).reshape(3, 8, 12) % 5},
    ),
    "low-res": (LowRes, {"channels": 1}, {"low_res": torch.linspace(-1, 1, 3 * 4 * 6).reshape(3, 1, 4, 6)}),
    "noised-low-res": (
        NoisedLowRes,
        {"levels": 9, "trained_below": 5},
        {
            "low_res": torch.ones(3, 3, 4, 6),
            "noise_level": torch.tensor([0, 4, 8]),
            "low_res_noise": torch.ones(3, 3, 4, 6),
        },
    ),
    "masked-image": (
        MaskedImage,
        {"channels": 4, "order": ("mask", "latent"), "mask_range": (0.0, 1.0), "hole": 0.0},
        {"masked_image_latent": torch.ones(3, 4, 4, 6), "mask": torch.ones(3, 1, 16, 24)},
    ),
    "precomputed context": (
        Precomputed,
        {"key": "clip", "slot": "context", "size": 7},
        {"clip": torch.ones(3, 2, 7)},
    ),
    "precomputed vector": (Precomputed, {"key": "pose", "slot": "vector", "size": 7}, {"pose": torch.ones(3, 7)}),
    "precomputed concat": (
        Precomputed,
        {"key": "depth", "slot": "concat", "size": 1},
        {"depth": torch.ones(3, 1, 4, 6)},
    ),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    make, keywords, batch = CASES[request.param]
    return make(**keywords), keywords, batch


def test_is_a_conditioner_that_reads_what_it_says(case):
    conditioner, _, batch = case
    assert isinstance(conditioner, Conditioner)
    assert isinstance(conditioner, torch.nn.Module)
    assert set(conditioner.reads) <= set(batch)


def test_provides_exactly_the_slots_and_sizes_it_declares(case):
    conditioner, _, batch = case
    filled = conditioner(batch).filled()
    sizes = {slot: value.shape[2 if slot == "context" else 1] for slot, value in filled.items() if slot != "label"}
    declared = {slot: size for slot, size in conditioner.provides.items() if slot != "label"}
    assert sizes == declared
    assert set(filled) == set(conditioner.provides)
    assert all(value.shape[0] == 3 for value in filled.values())


def test_null_has_the_same_slots_shapes_and_types(case):
    conditioner, _, batch = case
    cond, null = conditioner(batch).filled(), conditioner.null(batch).filled()
    assert {name: (value.shape, value.dtype) for name, value in null.items()} == {
        name: (value.shape, value.dtype) for name, value in cond.items()
    }


def test_null_does_not_depend_on_the_condition(case):
    conditioner, _, batch = case
    kept = {"crop", "mask", "noise_level"}
    rolled = {key: value if key in kept else _rolled(value) for key, value in batch.items()}
    one, other = conditioner.null(batch).filled(), conditioner.null(rolled).filled()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_image_alone_gets_what_it_gets_in_a_batch(case):
    conditioner, _, batch = case
    for image in range(3):
        alone = conditioner({key: value[image : image + 1] for key, value in batch.items()}).filled()
        for name, value in conditioner(batch).filled().items():
            torch.testing.assert_close(alone[name], value[image : image + 1], rtol=1e-5, atol=1e-6)


def test_constructor_keywords_are_attributes_of_the_same_name(case):
    conditioner, keywords, _ = case
    for name, parameter in inspect.signature(type(conditioner)).parameters.items():
        assert getattr(conditioner, name) == keywords.get(name, parameter.default)


def test_every_trainable_parameter_gets_a_gradient(case):
    conditioner, _, batch = case
    outputs = [value for value in conditioner(batch).filled().values() if value.requires_grad]
    trainable = [parameter for parameter in conditioner.parameters() if parameter.requires_grad]
    if trainable:
        sum(output.square().sum() for output in outputs).backward()
    assert all(parameter.grad is not None for parameter in trainable)


def test_weights_of_half_precision_give_half_precision(case):
    conditioner, _, batch = case
    has_weights = bool(list(conditioner.parameters()))
    types = {value.dtype for value in conditioner.bfloat16()(batch).filled().values()}
    assert not has_weights or types == {torch.bfloat16}


def _rolled(value):
    return value.roll(1, 0) if isinstance(value, torch.Tensor) else value[1:] + value[:1]
