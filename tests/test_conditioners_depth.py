"""Depth maps: stretched per image, whatever their unit."""

import pytest
import torch
from torch.nn import functional as F

from ldmkit.conditioners.depth import Depth


def depth(count=2, size=(16, 24)):
    return torch.rand(count, 1, *size) * 5 + 3


def test_the_map_has_the_size_of_the_latent_and_fills_the_range():
    concat = Depth(8)({"depth": depth()}).concat
    assert concat.shape == (2, 1, 2, 3)
    assert torch.allclose(concat.amin(dim=(1, 2, 3)), torch.tensor(-1.0))
    assert ((concat.amax(dim=(1, 2, 3)) > 0.99) & (concat.amax(dim=(1, 2, 3)) <= 1)).all()


def test_it_is_the_published_formula():
    given = depth()
    small = F.interpolate(given, size=(4, 6), mode="bicubic", align_corners=False)
    for image, concat in zip(small, Depth(4)({"depth": given}).concat, strict=True):
        assert torch.allclose(concat, 2 * (image - image.min()) / (image.max() - image.min() + 0.001) - 1, atol=1e-6)


def test_the_unit_of_the_map_makes_no_difference_and_its_sense_does():
    given, conditioner = depth(), Depth(4)
    concat = conditioner({"depth": given}).concat
    assert torch.allclose(conditioner({"depth": 1000 * given + 7}).concat, concat, atol=2e-3)
    assert torch.allclose(conditioner({"depth": -given}).concat, -concat, atol=2e-3)


def test_images_are_stretched_apart():
    given, conditioner = depth(), Depth(4)
    both = conditioner({"depth": given}).concat
    assert torch.equal(conditioner({"depth": given[1:]}).concat, both[1:])


def test_a_flat_map_is_finite():
    assert torch.equal(Depth(4)({"depth": torch.full((1, 1, 8, 8), 3.0)}).concat, torch.full((1, 1, 2, 2), -1.0))


def test_the_null_is_one_depth_everywhere():
    assert torch.equal(Depth(8).null({"depth": depth()}).concat, torch.zeros(2, 1, 2, 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"\(B, 1, H, W\), got \(2, 3, 8, 8\)"),
        (torch.zeros(2, 8, 8), r"\(B, 1, H, W\)"),
        (torch.zeros(1, 1, 8, 12), "multiples of 8, got 8 x 12"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "floating point"),
    ],
)
def test_what_is_no_map_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Depth(8)({"depth": given})


def test_a_factor_below_one_is_refused():
    with pytest.raises(ValueError, match="factor of at least 1, got 0"):
        Depth(0)
