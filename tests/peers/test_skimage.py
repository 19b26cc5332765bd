"""PSNR and SSIM against scikit-image, in float64: the tolerance is that of sums in another order."""

import pytest
import torch

from ldmkit.training.metrics import psnr, ssim

metrics = pytest.importorskip("skimage.metrics")


@pytest.mark.parametrize(("height", "width"), [(11, 11), (24, 37)])
@pytest.mark.parametrize("span", [1.0, 255.0])
def test_metrics_are_those_of_scikit_image(span, height, width):
    a = torch.rand(2, 3, height, width, dtype=torch.float64) * span
    b = (a + 0.1 * span * torch.randn_like(a)).clamp(0, span)
    for n in range(2):
        x, y = a[n].numpy(), b[n].numpy()
        theirs = metrics.peak_signal_noise_ratio(x, y, data_range=span)
        assert float(psnr(a, b, span)[n]) == pytest.approx(theirs, rel=1e-12)
        window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        theirs = metrics.structural_similarity(x, y, data_range=span, channel_axis=0, **window)
        assert float(ssim(a, b, span)[n]) == pytest.approx(theirs, rel=1e-10)
