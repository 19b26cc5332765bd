"""The conditioner that turns layouts into context."""

import pytest
import torch

from ldmkit.conditioners import Box, Layout, Point
from ldmkit.conditioners.layout_tokens import FULL

TINY = {"classes": 5, "width": 8, "depth": 1, "tokens": 64, "max_objects": 3, "heads": 2, "head_width": 4}


def test_a_layout_is_encoded_through_its_tokens():
    conditioner = Layout(**TINY)
    boxes, crop = [Box(4, 0.1, 0.2, 0.9, 0.8)], (0.0, 0.0, 0.5, 1.0)
    tokens = torch.tensor([conditioner.tokenizer.encode(boxes, crop)])
    context = conditioner({"boxes": [boxes], "crop": [crop]}).context
    assert torch.equal(context, conditioner.transformer(tokens))


def test_null_is_no_objects_and_the_same_crops():
    conditioner = Layout(**TINY)
    batch = {"boxes": [[(1, 0.0, 0.0, 1.0, 1.0)], []], "crop": [(0.0, 0.0, 0.5, 1.0), None]}
    null = conditioner.null(batch).context
    torch.testing.assert_close(null, conditioner({**batch, "boxes": [[], []]}).context)
    assert not torch.allclose(null[0], null[1])


def test_a_missing_crop_is_the_whole_picture():
    conditioner, boxes = Layout(**TINY), [[(1, 0.0, 0.0, 1.0, 1.0)]]
    whole = conditioner({"boxes": boxes, "crop": torch.tensor([FULL])}).context
    assert torch.equal(conditioner({"boxes": boxes}).context, whole)


def test_tuples_and_objects_give_the_same():
    conditioner = Layout(**TINY, flags=("group",))
    objects = [[Box(1, 0.0, 0.0, 0.5, 1.0, ("group",))]]
    tuples = [[(1, 0.0, 0.0, 0.5, 1.0, ("group",))]]
    assert torch.equal(conditioner({"boxes": objects}).context, conditioner({"boxes": tuples}).context)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[], [(9, 0, 0, 1, 1)]], "'layout', image 1 of the batch.*got 9"),
        ([[(1, 0, 0, 1)]], "image 0.*Box or a tuple"),
        ([[Point(1, 0.5, 0.5)]], "image 0.*Box or a tuple"),
        ([[(1, 0, 0, 1, 1)] * 4], "image 0.*at most 3"),
    ],
)
def test_a_refused_layout_is_named_by_its_image(boxes, message):
    with pytest.raises(ValueError, match=message):
        Layout(**TINY)({"boxes": boxes})


def test_as_many_crops_as_images_are_needed():
    with pytest.raises(ValueError, match="one crop per image, got 1 crops for 2"):
        Layout(**TINY)({"boxes": [[], []], "crop": [FULL]})


def test_a_layout_of_unknown_objects_is_refused():
    with pytest.raises(ValueError, match="'masks'"):
        Layout(**TINY, objects="masks")


def test_the_names_of_a_layout_are_one_per_class():
    assert Layout(**TINY, names=list("abcde")).names == ("a", "b", "c", "d", "e")
    with pytest.raises(ValueError, match="5 classes and was given 2 names"):
        Layout(**TINY, names=["a", "b"])
