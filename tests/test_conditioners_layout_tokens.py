"""Layouts as token sequences, and back."""

import random

import pytest

from ldmkit.conditioners import Box, LayoutTokenizer, Point, Vocabulary
from ldmkit.conditioners.layout_tokens import FLAGS, FULL


def random_boxes(count, classes, cell=0.0, seed=0):
    draw = random.Random(seed)
    boxes = []
    for _ in range(count):
        x, y = sorted((draw.random(), draw.random())), sorted((draw.random(), draw.random()))
        flags = tuple(flag for flag in FLAGS if draw.random() < 0.3)
        if x[1] - x[0] > cell and y[1] - y[0] > cell:
            boxes.append(Box(draw.randrange(classes), x[0], y[0], x[1], y[1], flags))
    return boxes


def test_the_worked_example_of_the_original():
    tokenizer = LayoutTokenizer(Box, Vocabulary(340, flags=tuple(FLAGS)))
    box = Box(5, 0.1, 0.2, 0.4, 0.6, ("group", "inside"))
    assert tokenizer.length == 92
    assert tokenizer.encode([box], (0, 0, 0.5, 1)) == [3065, 1629, 4806, *[8191] * 87, 0, 8054]


def test_a_mirrored_example_of_the_original():
    tokenizer = LayoutTokenizer(Box, Vocabulary(340))
    (box,), crop = tokenizer.decode(tokenizer.encode([Box(5, 0.1, 0.2, 0.4, 0.6)], (0, 0, 0.5, 1), flip=True))
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((0.596, 0.202, 0.899, 0.596), abs=5e-4)
    assert crop == pytest.approx((0.494, 0, 1, 1), abs=5e-4)


def test_halves_round_to_even_as_in_the_original():
    assert Vocabulary(5).place((0.5, 0.5)) == 44 * 90 + 44
    assert Vocabulary(5, tokens=64).place((0.5, 3 / 14)) == 2 * 8 + 4


@pytest.mark.parametrize("tokens", [64, 100, 1000, 8192])
@pytest.mark.parametrize("crop_tokens", [True, False])
def test_decoding_is_the_inverse_to_half_a_cell(tokens, crop_tokens):
    vocabulary = Vocabulary(5, tokens, flags=("group", "depiction"))
    half = 0.5 / (vocabulary.cells - 1) + 1e-9
    tokenizer = LayoutTokenizer(Box, vocabulary, 20, crop_tokens)
    boxes = random_boxes(20, 5)
    decoded, crop = tokenizer.decode(tokenizer.encode(boxes))
    assert crop == FULL
    for box, back in zip(boxes, decoded, strict=True):
        assert back.label == box.label
        assert set(back.flags) == set(box.flags) & {"group", "depiction"}
        for place, returned in zip(box.places, back.places, strict=True):
            assert returned == pytest.approx(place, abs=half)


@pytest.mark.parametrize("kind", [Box, Point])
@pytest.mark.parametrize("crop_tokens", [True, False])
def test_decoded_sequences_encode_to_themselves(kind, crop_tokens):
    tokenizer = LayoutTokenizer(kind, Vocabulary(5, flags=tuple(FLAGS)), crop_tokens=crop_tokens)
    boxes = random_boxes(20, 5, cell=0.02)
    objects = boxes if kind is Box else [box.centre() for box in boxes]
    sequence = tokenizer.encode(objects, (0.25, 0.0, 1.0, 0.75) if crop_tokens else FULL)
    assert tokenizer.encode(*tokenizer.decode(sequence)) == sequence


def test_mirroring_twice_gives_the_object_back():
    box, point = Box(1, 0.25, 0.5, 0.625, 1.0), Point(1, 0.25, 0.5)
    assert box.flipped() == Box(1, 0.375, 0.5, 0.75, 1.0)
    assert box.flipped().flipped() == box
    assert point.flipped().flipped() == point


def test_the_centre_of_a_box_is_a_point_with_its_class_and_flags():
    assert Box(3, 0.0, 0.5, 0.5, 1.0, ("inside",)).centre() == Point(3, 0.25, 0.75, ("inside",))


def test_objects_keep_their_order():
    tokenizer = LayoutTokenizer(Box, Vocabulary(5))
    boxes = random_boxes(8, 5)
    assert [box.label for box in tokenizer.decode(tokenizer.encode(boxes[::-1]))[0]] == [b.label for b in boxes[::-1]]


def test_a_box_outside_the_crop_is_left_out():
    tokenizer = LayoutTokenizer(Box, Vocabulary(5))
    boxes = [Box(0, 0.0, 0.0, 0.5, 0.5), Box(1, 0.4, 0.4, 0.6, 0.6), Box(2, 0.9, 0.9, 1.0, 1.0)]
    decoded, _ = tokenizer.decode(tokenizer.encode(boxes, (0.5, 0.5, 0.8, 0.8)))
    assert [box.label for box in decoded] == [1]


def test_only_boxes_in_the_crop_need_a_slot():
    tokenizer = LayoutTokenizer(Box, Vocabulary(5), max_objects=1)
    boxes = [Box(0, 0.0, 0.0, 0.4, 0.4), Box(1, 0.5, 0.5, 0.6, 0.6)]
    assert tokenizer.encode(boxes, (0.5, 0.5, 1.0, 1.0))[0] == 1


def test_without_crop_tokens_a_box_is_cut_at_the_crop_and_told_in_its_coordinates():
    tokenizer = LayoutTokenizer(Box, Vocabulary(5, tokens=90_000), crop_tokens=False)
    decoded, crop = tokenizer.decode(tokenizer.encode([Box(2, 0.0, 0.0, 0.4, 1.0)], (0.2, 0.5, 1.0, 1.0)))
    assert crop == FULL
    assert decoded[0].places == (pytest.approx((0.0, 0.0), abs=2e-3), pytest.approx((0.25, 1.0), abs=2e-3))


def test_without_crop_tokens_a_point_outside_the_crop_is_left_out():
    tokenizer = LayoutTokenizer(Point, Vocabulary(5, tokens=90_000), crop_tokens=False)
    points = [Point(0, 0.1, 0.1), Point(1, 0.75, 0.6)]
    decoded, _ = tokenizer.decode(tokenizer.encode(points, (0.5, 0.5, 1.0, 0.9)))
    assert [point.label for point in decoded] == [1]
    assert (decoded[0].x, decoded[0].y) == pytest.approx((0.5, 0.25), abs=2e-3)


def test_with_crop_tokens_coordinates_stay_those_of_the_picture():
    tokenizer = LayoutTokenizer(Box, Vocabulary(5))
    box = Box(2, 0.0, 0.0, 0.4, 1.0)
    assert tokenizer.encode([box], (0.2, 0.5, 1.0, 1.0))[:3] == tokenizer.encode([box])[:3]


def test_a_flag_that_the_vocabulary_does_not_carry_is_not_told():
    assert Vocabulary(600, flags=("group",)).word(493, ("group", "occluded")) == 1093
    assert Vocabulary(600).word(493, ("group", "occluded")) == 493


def test_rounding_errors_of_pixel_coordinates_are_allowed():
    tokenizer = LayoutTokenizer(Box, Vocabulary(5))
    assert tokenizer.encode([Box(0, -1e-9, 0.0, 1 + 1e-9, 1.0)]) == tokenizer.encode([Box(0, 0.0, 0.0, 1.0, 1.0)])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box(5, 0.1, 0.1, 0.2, 0.2), r"\[0, 4\], got 5"),
        (Box(-1, 0.1, 0.1, 0.2, 0.2), "got -1"),
        (Box(1.5, 0.1, 0.1, 0.2, 0.2), r"got 1\.5"),
        (Box(1, 0.2, 0.1, 0.2, 0.2), "x0 < x1"),
        (Box(1, 0.1, 0.3, 0.2, 0.2), "y0 < y1"),
        (Box(1, 0.1, 0.1, 1.2, 0.2), "divide pixels"),
        (Box(1, -0.1, 0.1, 0.2, 0.2), "divide pixels"),
        (Box(1, float("nan"), 0.1, 0.2, 0.2), "nan"),
        (Box(1, 0.1, 0.1, float("inf"), 0.2), "inf"),
        (Box(1, 0.1, 0.1, 0.2, 0.2, ("big",)), "'big'"),
    ],
)
def test_a_box_that_is_none_is_refused(box, message):
    for crop_tokens in (True, False):
        with pytest.raises(ValueError, match=message):
            LayoutTokenizer(Box, Vocabulary(5), crop_tokens=crop_tokens).encode([box])


def test_a_refused_box_is_named_by_its_number():
    with pytest.raises(ValueError, match="object 1, a box of class 3,"):
        LayoutTokenizer(Box, Vocabulary(5)).encode([Box(0, 0, 0, 1, 1), Box(3, 0, 0, 0, 1)])


@pytest.mark.parametrize("point", [Point(1, 1.5, 0.5), Point(1, 0.5, float("nan")), Point(9, 0.5, 0.5)])
def test_a_point_that_is_none_is_refused(point):
    with pytest.raises(ValueError, match=r"\[0, "):
        LayoutTokenizer(Point, Vocabulary(5)).encode([point])


@pytest.mark.parametrize("crop", [(0.5, 0.0, 0.5, 1.0), (0.0, 0.0, 2.0, 1.0), (0.0, float("nan"), 1.0, 1.0)])
def test_a_crop_that_is_none_is_refused(crop):
    with pytest.raises(ValueError, match="the crop"):
        LayoutTokenizer(Box, Vocabulary(5)).encode([], crop)


def test_too_many_objects_are_refused():
    with pytest.raises(ValueError, match="at most 30 objects, got 31"):
        LayoutTokenizer(Box, Vocabulary(5)).encode([Box(0, 0, 0, 1, 1)] * 31)


def test_a_vocabulary_holds_its_objects_and_padding_apart():
    assert Vocabulary(63, tokens=64).word(62) == 62
    with pytest.raises(ValueError, match=r"64 classes.*need 64 object tokens"):
        Vocabulary(64, tokens=64)
    with pytest.raises(ValueError, match="need 128 object tokens"):
        Vocabulary(64, tokens=128, flags=("group",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary(5, flags=("large",)), "'large'"),
        (lambda: Vocabulary(0), "at least 1 class"),
        (lambda: Vocabulary(1, tokens=3), "4 tokens"),
        (lambda: LayoutTokenizer(Box, Vocabulary(5), max_objects=0), "max_objects = 0"),
    ],
)
def test_a_vocabulary_or_tokenizer_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"), [({0: 20}, "no object"), ({0: -1}, "no object"), ({1: 8150}, "no place"), ({4: -1}, "place")]
)
def test_a_sequence_with_a_token_out_of_place_is_refused(change, message):
    tokenizer = LayoutTokenizer(Box, Vocabulary(5, flags=("group",)), max_objects=2)
    sequence = tokenizer.encode([Box(0, 0, 0, 1, 1)] * 2)
    for place, token in change.items():
        sequence[place] = token
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(sequence)


def test_a_sequence_of_another_length_is_refused():
    with pytest.raises(ValueError, match="has 92 tokens, got 90"):
        LayoutTokenizer(Box, Vocabulary(5)).decode([8191] * 90)
