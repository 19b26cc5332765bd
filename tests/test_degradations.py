"""Degradations are functions of image and seed, keep the picture where it is, and spoil it as far as they say."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from ldmkit.data import BSR, Bicubic, Box, bsr_light
from ldmkit.data.degradations import FULL, LIGHT, Strength, jpeg, whole
from ldmkit.data.kernels import blurred, gaussian, tilted_gaussian
from ldmkit.data.resampling import area, cubic, linear, smooth_cubic

KINDS = [Bicubic, Box, BSR, bsr_light]
RANDOM = [BSR, bsr_light]
NAMES = {Bicubic: "Bicubic", Box: "Box", BSR: "BSR", bsr_light: "BSR"}
STILL = replace(LIGHT, tilted_sides=(5, 7, 9, 11, 13), round_sides=(5, 7))


def picture(H, W, channels=3):
    """A smooth picture with edges, (C, H, W) in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, H), torch.linspace(0, 1, W), indexing="ij")
    waves = torch.stack([(torch.sin(6 * x + k) * torch.cos(5 * y - k) + 1) / 2 for k in range(channels)])
    waves[:, H // 4 : H // 2, W // 4 : W // 2] = 0.9
    return waves


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("factor", "size"), [(2, (32, 48)), (3, (33, 27)), (4, (64, 32)), (4, (4, 8)), (8, (64, 64))])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_result_is_smaller_by_the_factor_and_keeps_its_shape(kind, factor, size, channels):
    image = picture(*size, channels)
    kept = image.clone()
    for seed in range(4):
        small = kind(factor)(image, seed)
        assert small.shape == (channels, size[0] // factor, size[1] // factor)
        assert small.dtype == image.dtype
        assert 0 <= small.min() <= small.max() <= 1
    assert torch.equal(image, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_depends_on_image_and_seed_alone(kind):
    image, before = picture(32, 40), (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    forward, backward = [kind()(image, seed) for seed in range(6)], [kind()(image, seed) for seed in reversed(range(6))]
    assert all(torch.equal(one, other) for one, other in zip(forward, reversed(backward), strict=True))
    assert len({small.numpy().tobytes() for small in forward}) == (6 if kind in RANDOM else 1)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("kind", RANDOM)
def test_the_random_ones_end_in_bytes(kind):
    small = kind()(picture(32, 32).double(), 3) * 255
    assert (small - small.round()).abs().max() < 1e-9


def test_the_light_one_spoils_less():
    image = picture(64, 64)
    clean = Bicubic()(image, 0)
    full, light = (
        sum(float((kind()(image, seed) - clean).square().mean()) for seed in range(16)) / 16 for kind in RANDOM
    )
    assert 0 < 2 * light < full


# Zhang et al. 2021, section 3, and its light variant: two blurs against one, and the ranges of noise and of JPEG.
def test_the_two_strengths_are_the_published_ones():
    assert (FULL.noise, FULL.quality, FULL.resize, FULL.blur) == ((2, 25), (30, 95), 0.75, 1.0)
    assert (LIGHT.noise, LIGHT.quality, LIGHT.resize, LIGHT.blur) == ((1, 2), (80, 95), 0.8, 0.25)
    assert set(FULL.steps) - set(LIGHT.steps) == {"blur again"}
    assert (BSR().strength, bsr_light().strength, bsr_light(2).factor) == (FULL, LIGHT, 2)


@pytest.mark.parametrize(("strength", "low", "high"), [(FULL, 10, 30), (LIGHT, 1, 4)])
def test_noise_is_as_strong_as_it_says(strength, low, high):
    noisy = BSR(2, replace(strength, steps=("shrink", "shrink to size", "noise"), quality=(100, 100)))
    made = [noisy(torch.full((3, 32, 32), 0.5), seed) * 255 for seed in range(40)]
    assert low < max(float(image.std()) for image in made) < high


def test_two_in_five_draws_of_noise_are_grey():
    """Of 20 bytes, where colour shows however the channels depend on each other."""
    noisy = BSR(2, Strength(("shrink", "shrink to size", "noise"), 1.0, (7,), (7,), 1.0, (20, 20), (100, 100)))
    made = [noisy(torch.full((3, 32, 32), 0.5), seed) * 255 for seed in range(80)]
    grey = [float((image - image.mean(0)).abs().max()) < 4 for image in made]
    assert 0.25 < sum(grey) / 80 < 0.55


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_image_keeps_its_mean(kind):
    means = [float(kind()(torch.full((3, 64, 64), 0.5), seed).mean()) for seed in range(8)]
    assert sum(means) / 8 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("kind", [Bicubic, Box])
def test_nothing_moves(kind):
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).expand(3, 16, 64).contiguous()
    middles = ramp.unfold(2, 4, 4).mean(-1)[:, :4]
    assert torch.allclose(kind()(ramp, 0)[..., 2:-2], middles[..., 2:-2], atol=1e-12)


def shift(degradation, seeds=48):
    """How far right and down the centre of a blob moves on average, in pixels of the large image."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    blob = torch.exp(-((y - 31.5) ** 2 + (x - 31.5) ** 2) / 128).expand(3, 64, 64).contiguous()
    at = torch.arange(16.0) * 4 + 1.5
    mass = [(degradation(blob, seed).mean(0) - 0.1).clamp(min=0) for seed in range(seeds)]
    return np.mean([[float((m.sum(axis) * at).sum() / m.sum()) - 31.5 for axis in (0, 1)] for m in mass], 0)


def test_the_random_one_moves_nothing_on_average():
    assert np.abs(shift(BSR())).max() < 0.3
    assert np.abs(shift(BSR(strength=STILL))).max() < 0.1


def test_the_light_one_moves_to_the_upper_left_as_published():
    assert (shift(bsr_light()) < -0.4).all()


def test_shrinking_by_picking_looks_at_the_middle_of_the_block():
    ramp = torch.arange(100, dtype=torch.float64).expand(1, 100, 100).contiguous()
    for factor in (2, 3, 4):
        picked = blurred(ramp, gaussian(25, 0.6 * factor, shift=(factor - 1) / 2))[:, ::factor, ::factor]
        inner = slice(16 // factor + 1, -(20 // factor))
        middles = torch.arange(0, 100, factor, dtype=torch.float64) + (factor - 1) / 2
        assert torch.allclose(picked[0, 5, inner], middles[inner], atol=1e-3)


@pytest.mark.parametrize("side", [3, 6, 25])
@pytest.mark.parametrize("sigma", [0.0, 1e-3, 0.4, 3.0])
def test_kernels_sum_to_one_and_never_vanish(side, sigma):
    for kernel in (gaussian(side, sigma), tilted_gaussian(side, (sigma**2, 2.0), 0.7)):
        assert kernel.shape == (side, side)
        assert float(kernel.sum()) == pytest.approx(1)
        assert torch.allclose(kernel, kernel.flip(0, 1), atol=1e-9)


def test_kernels_are_as_wide_as_they_say():
    u = torch.arange(25, dtype=torch.float64) - 12
    assert float((gaussian(25, 2.0).sum(0) * u**2).sum()) == pytest.approx(4, rel=1e-3)
    tilted = tilted_gaussian(25, (6.0, 2.0), 0.0)
    assert float((tilted.sum(0) * u**2).sum()) == pytest.approx(6, rel=1e-3)
    assert float((tilted.sum(1) * u**2).sum()) == pytest.approx(2, rel=1e-3)
    turned = tilted_gaussian(25, (6.0, 2.0), math.pi / 4)
    assert float((turned * u[:, None] * u).sum()) == pytest.approx((6 - 2) / 2, rel=1e-3)


@pytest.mark.parametrize("side", [3, 4, 7])
def test_blurring_is_the_mirrored_sum_over_the_kernel(side):
    image = torch.rand(2, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = tilted_gaussian(side, (2.0, 0.5), 0.4) * torch.arange(1, side + 1)
    before, after = (side - 1) // 2, side // 2
    padded = functional.pad(image[None], (before, after, before, after), mode="reflect")
    expected = functional.conv2d(padded, kernel.expand(2, 1, side, side), groups=2)[0]
    assert torch.allclose(blurred(image, kernel), expected, atol=1e-12)


def test_area_is_the_mean_of_what_each_pixel_covers():
    image = torch.rand(3, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(area(image, (3, 5)), functional.avg_pool2d(image, 4))
    assert torch.allclose(area(image, (5, 7)).mean((1, 2)), image.mean((1, 2)))
    row = torch.tensor([[[0.0, 3.0, 6.0]]])
    assert torch.allclose(area(row, (1, 2)), torch.tensor([[[1.0, 5.0]]]))
    assert torch.equal(area(image, (24, 40)), linear(image, (24, 40)))


@pytest.mark.parametrize("resample", [linear, cubic, smooth_cubic, area])
@pytest.mark.parametrize("size", [(5, 7), (16, 16), (12, 20), (1, 1)])
def test_resampling_keeps_a_plain_image(resample, size):
    assert torch.allclose(resample(torch.full((3, 12, 20), 0.25), size), torch.full((3, *size), 0.25))


def test_antialiased_cubic_is_pillows():
    image = torch.rand(1, 24, 40, generator=torch.Generator().manual_seed(0))
    for size in ((6, 10), (7, 13), (30, 41)):
        pillows = np.asarray(Image.fromarray(image[0].numpy()).resize(size[::-1], Image.Resampling.BICUBIC))
        assert torch.allclose(smooth_cubic(image, size)[0], torch.from_numpy(pillows.copy()), atol=1e-5)


def test_jpeg_loses_less_at_higher_quality():
    image = picture(40, 24)
    losses = [float((jpeg(image, quality) - image).abs().mean()) for quality in (10, 50, 95)]
    assert losses[0] > losses[1] > losses[2] > 0


def test_cropping_to_whole_blocks_keeps_the_rest():
    image = picture(33, 50)
    assert torch.equal(whole(image, 4), image[:, :32, :48])
    assert torch.equal(whole(image[:, :32, :48], 4), image[:, :32, :48])
    with pytest.raises(ValueError, match="smaller than the factor 4"):
        whole(image[:, :3], 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.zeros(3, 33, 32), r"4 does not divide 33 x 32: .*whole\(image, 4\)"),
        (torch.zeros(1, 3, 32, 32), r"shape \(1, 3, 32, 32\)"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "uint8"),
    ],
)
def test_images_that_cannot_be_degraded_are_refused(kind, image, says):
    with pytest.raises(ValueError, match=f"'{NAMES[kind]}'.*{says}"):
        kind()(image, 0)


@pytest.mark.parametrize("kind", RANDOM)
def test_the_random_ones_refuse_what_jpeg_would_spoil(kind):
    for image in (torch.zeros(4, 8, 8), torch.full((3, 8, 8), -1.0), torch.full((3, 8, 8), torch.nan)):
        with pytest.raises(ValueError, match="'BSR' takes an image of 1 or 3 channels"):
            kind()(image, 0)
    with pytest.raises(ValueError, match="seed"):
        kind()(torch.zeros(3, 8, 8), -1)


@pytest.mark.parametrize("steps", [("shrink", "shrink to size", "blurr"), ("shrink", "noise")])
def test_steps_that_cannot_be_made_are_refused(steps):
    with pytest.raises(ValueError, match="steps of Strength"):
        replace(FULL, steps=steps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_below_two_is_refused(kind):
    with pytest.raises(ValueError, match=f"'{NAMES[kind]}'.*got 1"):
        kind(1)
