"""Masks are functions of their seed and cover what they say, whatever the size."""

import itertools
import random

import numpy as np
import pytest
import torch

from ldmkit.data.masks import Boxes, Frames, Mixed, Strokes, covered_part

MAKERS = [Strokes(), Boxes(), Frames(), Mixed(), Mixed((Strokes(), Boxes(), Frames()), (1.0, 2.0, 0.5))]
SIZES = [(32, 32), (20, 70), (96, 48)]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: type(maker).__name__)
@pytest.mark.parametrize("size", SIZES)
def test_masks_are_zero_and_one_and_of_the_size(maker, size):
    mask = maker(size, 0)
    assert mask.shape == (1, *size)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: type(maker).__name__)
def test_a_mask_depends_on_its_seed_alone(maker):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = [maker((40, 40), seed) for seed in range(12)]
    again = [maker((40, 40), seed) for seed in reversed(range(12))]
    assert all(torch.equal(one, other) for one, other in zip(first, reversed(again), strict=True))
    assert len({mask.numpy().tobytes() for mask in first}) > 10
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("make", [Strokes, Boxes, Frames])
@pytest.mark.parametrize("coverage", [(0.05, 0.5), (0.0, 0.02), (0.3, 0.32), (0.9, 1.0), (0.0, 1.0)])
def test_coverage_never_leaves_its_bounds(make, coverage):
    maker = make(coverage=coverage)
    for size, seed in itertools.product([(50, 50), (50, 90)], range(25)):
        part = float(covered_part(maker(size, seed)[None]))
        assert coverage[0] <= part <= coverage[1]


def test_bounds_hold_where_one_shape_is_too_large_and_all_are_too_small():
    wide = Strokes(width=(0.9, 1.0), coverage=(0.05, 0.06))
    narrow = Strokes(times=(1, 1), width=(0.01, 0.01), length=(0.01, 0.01), coverage=(0.8, 0.85))
    tiny = Boxes(times=(1, 1), side=(0.01, 0.01), coverage=(0.99, 1.0))
    for maker, seed in itertools.product((wide, narrow, tiny), range(5)):
        part = float(covered_part(maker((64, 64), seed)[None]))
        assert maker.coverage[0] <= part <= maker.coverage[1]


@pytest.mark.parametrize("maker", [Frames(), Frames(coverage=(0.1, 0.125)), Frames((0.9, 0.9), 1.0, (0.2, 0.3))])
def test_a_frame_leaves_one_rectangle(maker):
    sides = set()
    for seed in range(60):
        known = maker((40, 64), seed)[0] == 0
        rows, columns = known.any(1).nonzero()[:, 0], known.any(0).nonzero()[:, 0]
        assert known.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        sides |= {"top"} if rows[0] > 0 else set()
        sides |= {"bottom"} if rows[-1] < 39 else set()
        sides |= {"left"} if columns[0] > 0 else set()
        sides |= {"right"} if columns[-1] < 63 else set()
    assert sides == {"top", "bottom", "left", "right"}


def test_one_side_of_a_frame_is_made_anew_in_any_case():
    alone = Frames(padding=(0.25, 0.25), chance=0.0, coverage=(0.0, 1.0))
    assert {float(covered_part(alone((40, 64), seed)[None])) for seed in range(20)} == {0.25}


def test_boxes_keep_their_margin():
    maker = Boxes(margin=0.1)
    for seed in range(20):
        mask = maker((60, 80), seed)[0]
        assert mask.sum() == mask[6:-6, 6:-6].sum() > 0


def test_a_stroke_is_every_pixel_within_half_a_width():
    """One segment of a known brush: its area is that of a rectangle and two half discs, as far as it is inside."""
    maker = Strokes(times=(1, 1), corners=(1, 1), length=(0.2, 0.2), width=(0.1, 0.1), coverage=(0.0, 1.0))
    areas = [float(maker((400, 400), seed).sum()) for seed in range(20)]
    whole = 80 * 40 + np.pi * 20**2
    assert max(areas) == pytest.approx(whole, rel=0.02)


def test_masks_look_alike_at_every_resolution():
    for seed in range(20):
        small, large = (Mixed()((side, side), seed) for side in (64, 256))
        assert (small - torch.nn.functional.avg_pool2d(large, 4)).abs().mean() < 0.05


def test_a_mixture_takes_its_parts_by_their_weights():
    full, none = Boxes(coverage=(1.0, 1.0)), Boxes(coverage=(0.0, 0.0))
    mixed = Mixed((full, none), (3.0, 1.0))
    rate = sum(float(mixed((4, 4), seed).mean()) for seed in range(400)) / 400
    assert 0.68 < rate < 0.82


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Strokes(coverage=(0.5, 0.2)), r"coverage of Strokes.*\(0.5, 0.2\)"),
        (lambda: Frames(coverage=(-0.1, 0.2)), "coverage of Frames"),
        (lambda: Boxes(times=(0, 2)), r"times of Boxes.*\(0, 2\)"),
        (lambda: Strokes(width=(0.0, 0.5)), "lengths of Strokes"),
        (lambda: Boxes(margin=0.5), "margin of Boxes"),
        (lambda: Frames(chance=1.5), "chance of a side of Frames"),
        (lambda: Mixed((), ()), "0 makers"),
        (lambda: Mixed((Boxes(),), (1.0, 2.0)), "1 makers"),
        (lambda: Mixed((Boxes(),), (0.0,)), "above 0"),
        (lambda: Boxes(coverage=(0.1, 0.11))((2, 2), 0), "no number of pixels of 2 x 2.*of Boxes"),
        (lambda: Frames(coverage=(0.1, 0.11))((5, 5), 0), "no number of pixels of 5 x 5"),
        (lambda: Frames(coverage=(0.07, 0.09))((5, 5), 0), "no frame of 5 x 5 pixels covers 2 to 2"),
        (lambda: Strokes()((0, 4), 0), "at least one pixel"),
        (lambda: Strokes()((8, 8), -1), "seed"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
