"""Records of shape scenes: functions of their index, in words that the tasks take."""

import pickle

import pytest
import torch

from ldmkit.data import Boxes, ShapeScenes
from ldmkit.data.fidelity import measure
from ldmkit.data.phrases import caption
from ldmkit.data.raster import label_map, reduced, render
from ldmkit.data.scenes import CLASSES
from ldmkit.tasks.inpainting import Inpainting
from ldmkit.tasks.layout_to_image import LayoutToImage
from ldmkit.tasks.semantic_synthesis import SemanticSynthesis
from ldmkit.tasks.super_resolution import SuperResolution
from ldmkit.tasks.text_to_image import TextToImage

EVERY = ("prompt", "boxes", "segmentation", "low_res", "mask_image")


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def test_a_record_shows_one_scene_in_every_view():
    data = ShapeScenes(5, side=32, views=EVERY)
    record, scene = data[3], data.scene(3)
    assert set(record) == {"target", "prompt", "boxes", "segmentation", "low_res", "image", "mask_image"}
    assert torch.equal(record["target"] * 255, render(scene, 32).float())
    assert torch.equal(record["low_res"] * 255, reduced(render(scene, 32), 4).float())
    assert torch.equal(record["segmentation"], label_map(scene, 32))
    assert record["prompt"] == caption(scene)
    assert record["boxes"] == scene.boxes
    assert torch.equal(record["image"], record["target"])
    assert measure([scene], record["target"][None]).exact == 1


def test_a_record_depends_on_its_index_alone():
    data = ShapeScenes(20, side=32, views=("paraphrase", "mask_image"))
    forward, backward = [data[i] for i in range(6)], [data[i] for i in reversed(range(6))]
    assert all(equal(one, other) for one, other in zip(forward, reversed(backward), strict=True))
    assert equal(pickle.loads(pickle.dumps(data))[5], forward[5])
    longer = ShapeScenes(100, side=32, views=("mask_image", "paraphrase"))
    assert all(equal(one, longer[i]) for i, one in enumerate(forward))
    assert len({record["mask_image"].numpy().tobytes() for record in forward}) == 6


def test_other_seeds_and_splits_are_other_scenes_and_masks():
    sets = [ShapeScenes(3, 32, split, seed, ("mask_image",)) for seed in (0, 1) for split in ("train", "test")]
    for key in ("target", "mask_image"):
        assert len({data[i][key].numpy().tobytes() for data in sets for i in range(3)}) == 12


def test_the_tasks_take_the_records():
    data = ShapeScenes(2, side=32, views=EVERY, masks=Boxes())
    record, scene = data[1], data.scene(1)
    assert TextToImage().prepare(record)["prompt"] == [caption(scene)]
    layout = LayoutToImage(classes=len(CLASSES), crops=False).prepare(record)["boxes"]
    assert [box.label for box in layout[0]] == [item.label for item in scene.items]
    assert SemanticSynthesis(classes=len(CLASSES) + 1).prepare(record)["segmentation"].shape == (1, 32, 32)
    assert SuperResolution().prepare(record)["low_res"].shape == (1, 3, 8, 8)
    hidden = Inpainting(hole=-1.0).prepare(record)
    assert torch.equal(hidden["mask"][0], record["mask_image"])


def test_a_loop_over_the_records_ends():
    data = ShapeScenes(3, side=32)
    assert len(list(data)) == len(data) == 3
    for outside in (3, -1):
        with pytest.raises(IndexError, match=f"0 to 2, got {outside}"):
            data[outside]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"views": ("prompt", "depth")}, "mask_image, got depth"),
        ({"side": 16}, "32 to 1024"),
        ({"side": 50, "views": ("low_res",)}, "divides the side of 50 pixels, got 4"),
    ],
)
def test_options_that_cannot_be_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        ShapeScenes(3, **options)
