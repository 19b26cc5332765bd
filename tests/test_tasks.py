"""From what a user has to the batch of a model, task by task, and back to the user's image."""

import numpy as np
import pytest
import torch
from PIL import Image

import ldmkit
from ldmkit.conditioners import ClassLabel, Layout, LowRes, Precomputed, SemanticMap
from ldmkit.conditioners.layout_tokens import Box, Point
from ldmkit.conditioners.noised_low_res import NoisedLowRes
from ldmkit.conditioning import Conditioning
from ldmkit.noise import Noise
from ldmkit.tasks.class_conditional import ClassConditional
from ldmkit.tasks.condition import Together
from ldmkit.tasks.contract import Fitting, Framing, Noising
from ldmkit.tasks.image_to_image import ImageToImage
from ldmkit.tasks.layout_to_image import LayoutToImage
from ldmkit.tasks.semantic_synthesis import SemanticSynthesis
from ldmkit.tasks.super_resolution import SuperResolution
from ldmkit.tasks.text_to_image import TextToImage

NAMES = ("cat", "dog", "cow")
LAYOUT = {"classes": 3, "width": 8, "depth": 1, "tokens": 64, "max_objects": 3, "heads": 2, "head_width": 4}


class Prompts(torch.nn.Module):
    """A conditioner of text: how long each prompt is."""

    reads = ("prompt",)
    provides = {"context": 8}  # noqa: RUF012

    def forward(self, batch):
        lengths = torch.tensor([float(len(prompt)) for prompt in batch["prompt"]])
        return Conditioning(context=lengths[:, None, None].expand(-1, 1, 8))

    def null(self, batch):
        return self({"prompt": [""] * len(batch["prompt"])})


def composed(conditioner=None, factor=2, channels=3):
    """A model whose sides are multiples of ``2 * factor``."""
    provides = (
        {}
        if conditioner is None
        else (conditioner if isinstance(conditioner, ldmkit.Joint) else ldmkit.Joint(conditioner)).provides
    )
    slots = {"context": "context_dim", "concat": "concat_channels", "label": "num_classes"}
    tiny = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "num_heads": 2}
    stage = {"base_channels": 32, "channel_mult": (1,) * factor.bit_length(), "num_res_blocks": 1}
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "kl", channels=3, image_channels=channels, **stage),
        backbone=ldmkit.build(
            "backbone",
            "unet",
            channels=3,
            attention_resolutions=(1,) if "context" in provides else (),
            **tiny,
            **{slots[slot]: size for slot, size in provides.items()},
        ),
        process=ldmkit.build("process", "vp"),
        prediction="v",
        conditioner=conditioner,
    ).eval()


def batch_of(task, model, inputs):
    """What a call makes of its inputs: the fitted task, its frame, and the batch."""
    task = task.fitted(model) if isinstance(task, Fitting) else task
    frame = task.frame(inputs, model)
    return task, frame, task.prepare(frame.inputs)


@pytest.fixture(scope="module")
def plain():
    return composed()


@pytest.mark.parametrize(
    "label",
    [
        [2, 0],
        (2, 0),
        torch.tensor([2, 0]),
        np.array([2, 0], dtype=np.uint8),
        ["cow", "cat"],
        ["cow", 0],
        [np.int64(2), 0],
    ],
)
def test_labels_are_numbers_or_names(label):
    prepared = ClassConditional(3, NAMES).prepare({"label": label})["label"]
    assert prepared.dtype == torch.int64
    assert prepared.tolist() == [2, 0]


@pytest.mark.parametrize("label", [1, "dog", np.int32(1), torch.tensor(1)])
def test_one_label_is_a_batch_of_one(label):
    assert ClassConditional(3, NAMES).prepare({"label": label})["label"].tolist() == [1]


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (None, ValueError, "needs label="),
        ([], ValueError, "empty"),
        (True, TypeError, "integers or names"),
        ([1, 0.5], TypeError, r"label\[1\]"),
        (torch.zeros(2, 2), ValueError, r"\(2, 2\)"),
        (torch.zeros(2), TypeError, "integers"),
        ([0, 3], ValueError, r"label\[1\] is 3; the classes are 0 to 2"),
        (-1, ValueError, "-1"),
        (["cat", "dgo"], ValueError, r"label\[1\] is 'dgo'.*did you mean 'dog'"),
    ],
)
def test_labels_that_are_no_class_are_refused(label, error, message):
    with pytest.raises(error, match=message):
        ClassConditional(3, NAMES).prepare({"label": label})


def test_names_travel_with_the_model():
    model = composed({"class": ClassLabel(3, 8, names=NAMES)})
    assert ClassConditional().fitted(model).prepare({"label": "cow"})["label"].tolist() == [2]
    assert ClassConditional(names=("a", "b", "c")).fitted(model).names == ("a", "b", "c")
    with pytest.raises(ValueError, match="carries no names"):
        ClassConditional().fitted(composed({"class": ClassLabel(3, 8)})).prepare({"label": "cow"})


def test_a_negative_prompt_is_another_batch_of_the_same_conditioner():
    model = composed({"text": Prompts()})
    inputs = {"prompt": ["a cat", "a dog"], "negative_prompt": ["blur", ""]}
    task, frame, batch = batch_of(TextToImage(), model, inputs)
    assert batch == {"prompt": ["a cat", "a dog"]}
    assert task.prepare(frame.negative) == {"prompt": ["blur", ""]}
    one = TextToImage().frame({**inputs, "negative_prompt": "blur"}, model)
    assert task.prepare(one.negative) == {"prompt": ["blur", "blur"]}
    assert TextToImage().frame({"prompt": "a cat"}, model).negative is None


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ValueError, "needs prompt="),
        ({"prompt": []}, ValueError, "prompt is an empty list"),
        ({"prompt": 3}, TypeError, "got int"),
        ({"prompt": ["a", None]}, TypeError, r"prompt\[1\].*NoneType"),
        ({"prompt": ["a", "\ud800"]}, ValueError, r"prompt\[1\].*surrogate"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, ValueError, "3 entries for 2 prompts"),
        ({"prompt": "a", "negative_prompt": [1]}, TypeError, r"negative_prompt\[0\]"),
    ],
)
def test_what_is_no_prompt_is_refused(inputs, error, message, plain):
    with pytest.raises(error, match=message):
        batch_of(TextToImage(), plain, inputs)


BOXES = [("cat", 0.1, 0.2, 0.5, 1.0), (1, 0.0, 0.0, 1.0, 0.5)]
WANT = [Box(0, 0.1, 0.2, 0.5, 1.0), Box(1, 0.0, 0.0, 1.0, 0.5)]


@pytest.mark.parametrize(
    "boxes",
    [
        BOXES,
        [BOXES],
        [[list(box) for box in BOXES]],
        [(0, *BOXES[0][1:]), BOXES[1]],
        WANT,
        np.array([(0, *BOXES[0][1:]), BOXES[1]]),
        torch.tensor([[(0, *BOXES[0][1:]), BOXES[1]]], dtype=torch.float64),
        [np.array([(0, *BOXES[0][1:]), BOXES[1]])],
    ],
)
def test_every_way_to_hold_boxes_says_the_same(boxes):
    prepared = LayoutToImage(names=NAMES).prepare({"boxes": boxes})
    assert prepared == {"boxes": [WANT], "crop": [(0.0, 0.0, 1.0, 1.0)]}


def test_pixels_are_told_by_the_size_of_the_picture():
    pixels = {"boxes": [(0, 20, 20, 100, 100), (1, 0, 0, 200, 50)], "box_size": (100, 200), "crop": (0, 0, 100, 50)}
    prepared = LayoutToImage().prepare(pixels)
    assert prepared == {"boxes": [WANT], "crop": [(0.0, 0.0, 0.5, 0.5)]}
    with pytest.raises(ValueError, match=r"boxes\[0\]\[0\].*box_size="):
        LayoutToImage().prepare({"boxes": pixels["boxes"]})


def test_crops_are_one_for_all_or_one_each():
    task, boxes = LayoutToImage(), [[], [(0, 0, 0, 1, 1)]]
    half = (0.0, 0.0, 0.5, 1.0)
    assert task.prepare({"boxes": boxes, "crop": half})["crop"] == [half, half]
    assert task.prepare({"boxes": boxes, "crop": [None, half]})["crop"] == [(0, 0, 1, 1), half]
    assert task.prepare({"boxes": boxes, "crop": torch.tensor([half, half])})["crop"] == [half, half]


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ValueError, "needs boxes="),
        ({"boxes": []}, ValueError, r"\[\[\]\] is one image without objects"),
        ({"boxes": 3}, TypeError, "got int"),
        ({"boxes": ["cat"]}, TypeError, r"boxes\[0\]"),
        ({"boxes": [[(0, 0, 0, 1, 1)], (0, 0, 0, 1, 1)]}, TypeError, r"boxes\[1\]"),
        ({"boxes": [(0, 0, 0, 1)]}, ValueError, r"boxes\[0\]\[0\] must be \(label, x0, y0, x1, y1\)"),
        ({"boxes": [[], [(0, 0, 0, 1, 1), (0, 0.5, 0, 0.5, 1)]]}, ValueError, r"boxes\[1\]\[1\] needs x0 < x1"),
        ({"boxes": [(0, -0.5, 0, 0.5, 1)]}, ValueError, r"\[0, 1\] of the picture"),
        ({"boxes": [(0, float("nan"), 0, 0.5, 1)]}, ValueError, "nan"),
        ({"boxes": [(0, None, 0, 0.5, 1)]}, TypeError, "numbers as coordinates"),
        ({"boxes": [(3, 0, 0, 1, 1)]}, ValueError, r"class of boxes\[0\]\[0\] is 3"),
        ({"boxes": [("cta", 0, 0, 1, 1)]}, ValueError, "did you mean 'cat'"),
        ({"boxes": [(0, 0, 0, 1, 1)], "box_size": 5}, TypeError, "box_size"),
        ({"boxes": [(0, 0, 0, 1, 1)], "box_size": (0, 5)}, ValueError, "box_size"),
        ({"boxes": [(0, 0, 0, 1, 1)], "crop": [None, None]}, ValueError, "one for each of 1 images"),
        ({"boxes": [(0, 0, 0, 1, 1)], "crop": (0, 0, 2, 2)}, ValueError, r"crop\[0\]"),
        ({"boxes": [Point(0, 0.5, 0.5)]}, TypeError, "must be a Box"),
    ],
)
def test_layouts_that_are_none_are_refused(inputs, error, message):
    with pytest.raises(error, match=message):
        LayoutToImage(classes=3, names=NAMES).prepare(inputs)


def test_a_layout_takes_its_convention_from_the_model():
    boxes = LayoutToImage().fitted(composed({"layout": Layout(**LAYOUT, names=NAMES)}))
    assert boxes == LayoutToImage("boxes", 3, NAMES, crops=True)
    points = LayoutToImage().fitted(composed({"layout": Layout(**LAYOUT, objects="points")}))
    assert points.fills == ("points", "crop")
    assert points.prepare({"points": [(0, 0.5, 0.25)]})["points"] == [[Point(0, 0.5, 0.25)]]
    embedded = composed({"boxes": Precomputed("boxes", "context", 8)})
    assert LayoutToImage().fitted(embedded).fills == ("boxes",)


def test_a_map_of_any_size_is_padded_and_the_image_cut_back():
    model = composed({"map": SemanticMap(5, 2, 1)})
    labels = torch.arange(7 * 9).view(7, 9) % 5
    task, frame, batch = batch_of(SemanticSynthesis(), model, {"segmentation": labels})
    assert task.classes == 5
    assert frame.size == (8, 12)
    assert torch.equal(batch["segmentation"][0, :7, :9], labels)
    assert (batch["segmentation"][0, 7] == batch["segmentation"][0, 6]).all()
    assert (batch["segmentation"][0, :, 9:] == batch["segmentation"][0, :, 8:9]).all()
    made = torch.rand(3, 3, 8, 12)
    assert torch.equal(frame.finish(made), made[:, :, :7, :9])
    assert model.sample(batch, size=frame.size, levels=1).shape == (1, 3, 4, 6)


def test_a_map_that_fits_is_left_alone():
    model = composed({"map": SemanticMap(5, 2, 1)})
    one_hot = torch.nn.functional.one_hot(torch.arange(2 * 64).view(2, 8, 8) % 5, 5).movedim(3, 1).float()
    _, frame, batch = batch_of(SemanticSynthesis(), model, {"segmentation": one_hot})
    assert frame.size == (8, 8)
    assert torch.equal(batch["segmentation"], one_hot)
    with pytest.raises(ValueError, match=r"labels in \[0, 5\]"):
        batch_of(SemanticSynthesis(), model, {"segmentation": torch.arange(6)[None]})


def test_a_small_image_of_any_size_grows_by_the_factor():
    model = composed({"low": LowRes(3)}, factor=4)
    small = torch.rand(2, 3, 5, 7)
    task, frame, batch = batch_of(SuperResolution(), model, {"image": small})
    assert frame.size == (24, 32)
    assert batch.keys() == {"low_res"}
    torch.testing.assert_close(batch["low_res"][:, :, :5, :7], small * 2 - 1)
    assert (batch["low_res"][:, :, 5] == batch["low_res"][:, :, 4]).all()
    assert frame.finish(torch.rand(4, 3, 24, 32)).shape == (4, 3, 20, 28)
    assert model.sample(batch, size=frame.size, levels=1).shape == (2, 3, 6, 8)
    assert not task.draws


def test_a_record_holds_the_small_image_beside_the_large_one():
    record = {"image": torch.rand(1, 3, 16, 16), "low_res": torch.rand(1, 3, 4, 4)}
    torch.testing.assert_close(SuperResolution().prepare(record)["low_res"], record["low_res"] * 2 - 1)


def noised_model():
    sources = {"low": NoisedLowRes(3, levels=9, trained_below=5), "text": Prompts()}
    return composed(ldmkit.Joint(sources, guided=["text"]), factor=4)


def test_the_noised_variant_takes_a_level_and_draws_by_seed():
    model = noised_model()
    inputs = {"image": torch.rand(2, 3, 4, 4), "prompt": "a cat", "negative_prompt": "blur", "noise_level": [0, 8]}
    task, frame, batch = batch_of(SuperResolution(), model, inputs)
    assert isinstance(task, Noising)
    assert (batch["noise_level"].tolist(), batch["prompt"]) == ([0, 8], ["a cat", "a cat"])
    noised = task.noised(batch, Noise((3, 7)))
    assert torch.equal(noised["low_res_noise"][1:], task.noised(batch, Noise((1, 7)))["low_res_noise"][1:])
    assert not torch.equal(noised["low_res_noise"][0], noised["low_res_noise"][1])
    assert noised["noise_level"].tolist() == [0, 8]
    negative = task.noised(task.prepare(frame.negative), Noise((3, 7)))
    assert negative["prompt"] == ["blur", "blur"]
    assert all(torch.equal(negative[key], noised[key]) for key in ("low_res", "noise_level", "low_res_noise"))
    z = model.sample(
        noised, size=frame.size, levels=1, negative=negative, guidance=ldmkit.build("guidance", "cfg", scale=2.0)
    )
    assert z.shape == (2, 3, 4, 4)


def test_sampling_has_a_customary_level_and_training_draws_them():
    task = SuperResolution().fitted(composed({"low": NoisedLowRes(3)}, factor=4))
    record = {"low_res": torch.rand(64, 3, 2, 2)}
    _, _, sampling = batch_of(task, composed({"low": NoisedLowRes(3)}, factor=4), {"image": record["low_res"]})
    assert sampling["noise_level"].tolist() == [20] * 64
    levels = task.noised(task.prepare(record), Noise(tuple(range(64))))["noise_level"]
    assert 0 <= int(levels.min()) < 60
    assert 290 < int(levels.max()) < 350
    with pytest.raises(ValueError, match=r"noise_level must lie in \[0, 999\]"):
        task.prepare({**record, "noise_level": 1000})
    with pytest.raises(TypeError, match="noise_level"):
        task.prepare({**record, "noise_level": 0.5})


def test_noise_is_mixed_as_the_upscaler_was_trained():
    conditioner = NoisedLowRes(3)
    beta = torch.linspace(1e-4**0.5, 2e-2**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - beta, 0)[[0, 20, 999]].float().view(-1, 1, 1, 1)
    batch = {"low_res": torch.rand(3, 3, 2, 4) * 2 - 1, "low_res_noise": torch.randn(3, 3, 2, 4)}
    cond = conditioner({**batch, "noise_level": torch.tensor([0, 20, 999])})
    mixed = alpha_bar.sqrt() * batch["low_res"] + (1 - alpha_bar).sqrt() * batch["low_res_noise"]
    torch.testing.assert_close(cond.concat, mixed)
    assert cond.label.tolist() == [0, 20, 999]
    assert conditioner.provides == {"concat": 3, "label": 1000}


def test_a_trajectory_starts_from_the_image(plain):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8))
    _, frame, batch = batch_of(ImageToImage(), plain, {"image": picture, "strength": 0.5})
    assert (batch, frame.size, frame.strength) == ({}, (8, 12), 0.5)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(frame.start[0, :, :5, :9], pixels)
    assert frame.finish(torch.rand(2, 3, 8, 12)).shape == (2, 3, 5, 9)


def test_the_condition_is_the_models_own():
    task = ImageToImage().fitted(composed({"text": Prompts()}))
    assert task.condition == TextToImage()
    assert task.takes == ("image", "strength", "prompt", "negative_prompt")
    grey = ImageToImage().fitted(composed({"class": ClassLabel(3, 8, names=NAMES)}, channels=1))
    assert (grey.channels, grey.condition) == (1, ClassConditional(3, NAMES))
    assert ImageToImage().fitted(composed()).condition is None
    given = ImageToImage(condition=ClassConditional(names=NAMES)).fitted(composed({"class": ClassLabel(3, 8)}))
    assert given.condition == ClassConditional(3, NAMES)


def test_one_image_serves_several_prompts_and_the_reverse():
    model = composed({"text": Prompts()})
    inputs = {"image": torch.rand(1, 3, 8, 8), "prompt": ["a", "b"], "negative_prompt": ["c", "d"]}
    task, frame, batch = batch_of(ImageToImage(), model, inputs)
    assert (len(frame.start), batch["prompt"]) == (2, ["a", "b"])
    assert task.prepare(frame.negative) == {"prompt": ["c", "d"]}
    _, frame, batch = batch_of(ImageToImage(), model, {"image": torch.rand(2, 3, 8, 8), "prompt": "a"})
    assert (len(frame.start), batch["prompt"]) == (2, ["a", "a"])
    with pytest.raises(ValueError, match="2 of 'image', 3 of 'prompt'"):
        batch_of(ImageToImage(), model, {"image": torch.rand(2, 3, 8, 8), "prompt": ["a"] * 3})


def test_several_conditions_stand_side_by_side():
    model = composed({"text": Prompts(), "map": SemanticMap(5, 2, 1)})
    inputs = {"image": torch.rand(1, 3, 7, 8), "prompt": "a", "negative_prompt": "b"}
    inputs["segmentation"] = torch.zeros(7, 8, dtype=torch.int64)
    task, frame, batch = batch_of(ImageToImage(), model, inputs)
    assert isinstance(task.condition, Together)
    assert (batch["prompt"], tuple(batch["segmentation"].shape)) == (["a"], (1, 8, 8))
    assert task.prepare(frame.negative)["prompt"] == ["b"]
    with pytest.raises(ValueError, match="images of 4 x 8 and of 8 x 8"):
        batch_of(ImageToImage(), model, {**inputs, "segmentation": torch.zeros(3, 8, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ValueError, "needs image="),
        ({"strength": 0}, ValueError, r"\(0, 1\]"),
        ({"strength": 1.5}, ValueError, "1.5"),
        ({"strength": float("nan")}, ValueError, "nan"),
        ({"strength": "half"}, TypeError, "'half'"),
    ],
)
def test_a_wrong_start_is_refused(inputs, error, message, plain):
    given = inputs and {"image": torch.rand(3, 8, 8), **inputs}
    with pytest.raises(error, match=message):
        ImageToImage().frame(given, plain)


def test_only_tasks_that_say_more_than_a_batch_frame():
    assert not isinstance(ClassConditional(), Framing)
    assert not isinstance(LayoutToImage(), Framing)
    assert isinstance(TextToImage(), Framing)
