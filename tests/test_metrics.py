"""Laws of the numbers that judge a first stage. Equality with scikit-image is in ``peers/test_skimage.py``."""

import math

import pytest
import torch

from ldmkit.training.metrics import psnr, ssim


def images(batch=2, height=16, width=20):
    return torch.rand(batch, 3, height, width, dtype=torch.float64)


def test_psnr_of_a_known_error():
    image = torch.zeros(2, 3, 4, 4)
    other = image + torch.tensor([0.01, 0.1]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(image, other), torch.tensor([40.0, 20.0]))
    torch.testing.assert_close(psnr(image, other, span=0.1), torch.tensor([20.0, 0.0]))
    assert float(psnr(image, image)[0]) == math.inf


def test_ssim_of_equal_images_is_one():
    image = images()
    torch.testing.assert_close(ssim(image, image), torch.ones(2, dtype=torch.float64))


def test_ssim_of_one_window_by_hand():
    a, b = images(1, 11, 11), images(1, 11, 11)
    near = [math.exp(-(n**2) / (2 * 1.5**2)) for n in range(-5, 6)]
    window = torch.tensor([[x * y for x in near] for y in near], dtype=torch.float64) / sum(near) ** 2

    def mean(x):
        return (window * x).sum(dim=(2, 3))

    spread = [mean(x * y) - mean(x) * mean(y) for x, y in ((a, b), (a, a), (b, b))]
    light = (2 * mean(a) * mean(b) + 1e-4) / (mean(a) ** 2 + mean(b) ** 2 + 1e-4)
    expected = light * (2 * spread[0] + 9e-4) / (spread[1] + spread[2] + 9e-4)
    torch.testing.assert_close(ssim(a, b), expected.mean(dim=1))


def test_ssim_of_flat_images_is_the_term_of_their_means():
    a, b = torch.full((1, 1, 11, 11), 0.5), torch.full((1, 1, 11, 11), 0.25)
    c1 = 0.01**2
    expected = (2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    assert float(ssim(a, b)) == pytest.approx(expected, rel=1e-4)


def test_ssim_of_a_negative_is_negative():
    image = images()
    assert (ssim(image, 1 - image) < -0.5).all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_are_symmetric_and_an_image_counts_alone(metric):
    a, b = images(3), images(3)
    torch.testing.assert_close(metric(a, b), metric(b, a))
    torch.testing.assert_close(metric(a[1:2], b[1:2]), metric(a, b)[1:2])
    assert metric(a.float(), b.float()).dtype == torch.float32
    assert metric(a.bfloat16(), b.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_the_range_is_a_unit(metric):
    a, b = images(), images()
    torch.testing.assert_close(metric(a, b), metric(255 * a, 255 * b, 255.0))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_that_cannot_be_compared_are_refused(metric):
    with pytest.raises(ValueError, match="images of one shape"):
        metric(images(), images(1))
    with pytest.raises(ValueError, match="sides of at least 11, got"):
        ssim(images(height=10), images(height=10))
