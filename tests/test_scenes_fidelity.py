"""The truth scores perfectly, and each mistake lowers the number that is named after it by what it weighs."""

from dataclasses import astuple, replace

import pytest
import torch

from ldmkit.data.fidelity import (
    box_iou,
    known_region_error,
    layout_iou,
    low_res_error,
    mean_iou,
    measure,
    misbound,
    object_f1,
)
from ldmkit.data.raster import reduced, render
from ldmkit.data.scenes import Item, Scene, draw_scene

RED = Item(y=12, x=12, shape="circle", colour="red", size="small")
BLUE = Item(y=50, x=50, shape="square", colour="blue", size="small")
BOTH = Scene("black", (RED, BLUE))


def shown(*scenes):
    return torch.stack([render(scene, 64) for scene in scenes])


def test_the_truth_is_perfect():
    scenes = [draw_scene(0, i, "composition") for i in range(5)]
    assert astuple(measure(scenes, shown(*scenes))) == (1, 1, 1, 0, 1, 1, 0)
    assert measure(scenes, shown(*scenes) / 255) == measure(scenes, shown(*scenes))


def test_a_missing_object_costs_its_share():
    lone = Scene("black", (RED,))
    got = measure([BOTH, BOTH], shown(BOTH, lone))
    assert (got.exact, got.caption, got.binding_error) == (0.5, 0.5, 0)
    assert got.object_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert got.layout_iou == pytest.approx(0.75)
    assert got.mean_iou < 1
    assert got.residual == 0
    assert object_f1(lone, BOTH) == object_f1(BOTH, lone)
    assert layout_iou(lone, BOTH) == 1


def test_a_moved_object_is_right_within_the_limit():
    near, far = Scene("black", (replace(RED, x=17), BLUE)), Scene("black", (replace(RED, x=18), BLUE))
    assert object_f1(BOTH, near) == 1
    assert object_f1(BOTH, far) == 0.5
    assert measure([BOTH], shown(near)).exact == 0
    assert measure([BOTH], shown(near)).caption == 1


def test_swapped_colours_are_a_binding_error_and_others_are_not():
    swapped = Scene("black", (replace(RED, colour="blue"), replace(BLUE, colour="red")))
    assert misbound(BOTH, swapped)
    assert measure([BOTH], shown(swapped)).binding_error == 1
    assert not misbound(BOTH, BOTH)
    assert not misbound(BOTH, Scene("black", (replace(RED, colour="cyan"), BLUE)))
    assert object_f1(BOTH, swapped) == layout_iou(BOTH, swapped) == 0


def test_overlap_of_boxes_is_their_shared_area():
    assert box_iou(RED, RED) == 1
    assert box_iou(RED, BLUE) == 0
    shift = 4 / 64
    shared = (0.22 - shift) * 0.22
    assert box_iou(RED, replace(RED, x=16)) == pytest.approx(shared / (2 * 0.22**2 - shared))
    assert layout_iou(BOTH, Scene("black", (replace(RED, x=16), BLUE))) == pytest.approx(
        (1 + box_iou(RED, replace(RED, x=16))) / 2
    )


def test_each_object_is_matched_once():
    twice = Scene("black", (RED, replace(RED, x=16)))
    assert object_f1(Scene("black", (RED,)), twice) == pytest.approx(2 / 3)
    assert layout_iou(twice, Scene("black", (RED,))) == 0.5
    assert object_f1(Scene("black", ()), Scene("navy", ())) == 1


def test_mean_iou_counts_the_classes_that_either_has():
    truth = torch.tensor([[0, 0, 1, 1]])
    assert mean_iou(truth, torch.tensor([[0, 0, 1, 1]])) == 1
    assert mean_iou(truth, torch.tensor([[0, 0, 0, 1]])) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert mean_iou(truth, torch.tensor([[0, 0, 2, 2]])) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="one size"):
        mean_iou(truth, truth.T)


def test_the_truth_agrees_with_its_small_image():
    images = shown(*(draw_scene(0, i) for i in range(4)))
    small = torch.stack([reduced(image, 4) for image in images])
    assert (low_res_error(images / 255, small / 255) <= 1 / 510).all()
    assert (low_res_error(images.flip(0) / 255, small / 255) > 0.02).all()
    flat = torch.full((1, 3, 8, 8), 0.5)
    assert low_res_error(flat, flat[..., ::2, ::2] + 0.25).item() == pytest.approx(0.25)
    with pytest.raises(ValueError, match="whole number of times"):
        low_res_error(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 2))


def test_only_changes_of_the_known_region_count():
    image = torch.zeros(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    made = image + mask * 0.7
    assert known_region_error(image, made, mask).tolist() == [0, 0]
    made[1, 2, 3, 3] = 0.25
    assert known_region_error(image, made, mask).tolist() == [0, 0.25]
    with pytest.raises(ValueError, match="one shape"):
        known_region_error(image, made, mask[:1])


def test_one_image_belongs_to_one_scene():
    with pytest.raises(ValueError, match="got 1 and 2"):
        measure([BOTH, BOTH], shown(BOTH))
    with pytest.raises(ValueError, match="got 0 and 0"):
        measure([], shown(BOTH)[:0])
