"""Layouts as pictures."""

import random
from itertools import combinations

import pytest

from ldmkit.conditioners import Box, Point, draw_layout
from ldmkit.conditioners.layout_picture import colour_of


def random_boxes(count):
    draw = random.Random(0)
    for label in range(count):
        x, y = draw.uniform(0, 0.7), draw.uniform(0, 0.7)
        yield Box(label, x, y, x + draw.uniform(0.02, 0.3), y + draw.uniform(0.02, 0.3))


def colours(picture):
    return {colour for count, colour in picture.getcolors(maxcolors=1 << 20) if count >= 4}


def test_a_picture_has_the_size_asked_for_and_is_the_same_each_time():
    boxes = list(random_boxes(30))
    one, other = (draw_layout(boxes, size=(160, 120)) for _ in range(2))
    assert one.size == (160, 120)
    assert one.mode == "RGB"
    assert one.tobytes() == other.tobytes()


def test_a_box_is_drawn_in_the_colour_of_its_class():
    for label in range(12):
        for corner in (0.0, 0.3):
            picture = draw_layout([(label, corner, corner, corner + 0.6, corner + 0.5)], size=(96, 96))
            assert colour_of(label) in colours(picture)


def test_no_two_of_a_hundred_classes_have_the_same_colour():
    palette = [colour_of(label) for label in range(100)]
    nearest = min(sum(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in combinations(palette, 2))
    assert nearest >= 8


def test_names_are_written_into_the_picture():
    boxes = [(0, 0.1, 0.1, 0.9, 0.9)]
    pictures = {draw_layout(boxes, names).tobytes() for names in (None, ["cat"], ["dog"])}
    assert len(pictures) == 3


def test_a_small_box_is_not_hidden_by_names():
    boxes = [Box(1, 0.0, 0.0, 1.0, 1.0), Box(3, 0.5, 0.5, 0.53, 0.53)]
    picture = draw_layout(boxes, ["", "a long name", "", "another long name"], size=(256, 256))
    assert picture.getpixel((128, 128)) == colour_of(3)
    assert picture.getpixel((132, 132)) not in (colour_of(1), colour_of(3))


def test_points_and_crowded_layouts_are_drawn():
    crowd = [Box(1, 0.5 + 0.002 * i, 0.5, 0.52 + 0.002 * i, 0.52) for i in range(30)]
    assert len(colours(draw_layout(crowd, size=(128, 128)))) >= 2
    assert len(colours(draw_layout([Point(1, 0.0, 1.0), Point(2, 0.5, 0.5)], size=(128, 128)))) >= 3


def test_a_name_longer_than_the_picture_is_shortened():
    assert draw_layout([(0, 0.0, 0.0, 1.0, 1.0)], ["x" * 500], (64, 64)).size == (64, 64)


def test_a_class_without_a_name_is_refused():
    with pytest.raises(ValueError, match="class 2 has no name: 2 names"):
        draw_layout([(2, 0.0, 0.0, 1.0, 1.0)], ["cat", "dog"])


def test_a_box_off_the_picture_is_not_drawn():
    with pytest.raises(ValueError, match="object 0 of class 0"):
        draw_layout([(0, 0.0, 0.0, 100.0, 100.0)])
