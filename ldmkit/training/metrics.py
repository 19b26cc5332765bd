r"""How well a first stage does: PSNR and SSIM of its reconstructions.

.. math::

    \mathrm{PSNR} = 10 \log_{10} \frac{R^2}{\operatorname{mean} (x - \hat x)^2}, \qquad
    \mathrm{SSIM} = \operatorname{mean} \frac{(2 \mu \hat\mu + c_1)(2 \sigma_{x \hat x} + c_2)}
        {(\mu^2 + \hat\mu^2 + c_1)(\sigma^2 + \hat\sigma^2 + c_2)}

R is the range of the values, which begin at 0: what SSIM says of brightness depends on where black is. What its latents
are like: :mod:`ldmkit.latents`. The usage of a codebook: :func:`ldmkit.first_stages.codebook_usage`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 11


def psnr(image: Tensor, other: Tensor, span: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of images, in dB; infinite for equal ones.

    Args:
        image: (B, C, H, W).
        other: the same shape.
        span: R: 1 for images in [0, 1], 255 for bytes.

    Returns:
        (B,), float32 or as precise as the images.

    Raises:
        ValueError: two shapes, or another rank.
    """
    _check("PSNR", image, other, 1)
    image, other = _precise(image), _precise(other)
    return 10 * torch.log10(span**2 / (image - other).square().mean(dim=(1, 2, 3)))


def ssim(image: Tensor, other: Tensor, span: float = 1.0) -> Tensor:
    """Structural similarity of images, 1 for equal ones: a Gaussian window of 11 pixels and deviation 1.5.

    Only windows that lie inside the image count, and channels count alike.

    Args:
        image: (B, C, H, W), sides at least 11.
        other: the same shape.
        span: R: 1 for images in [0, 1], 255 for bytes.

    Returns:
        (B,) in [-1, 1], float32 or as precise as the images.

    Raises:
        ValueError: two shapes, another rank, or images smaller than the window.

    Source: Wang et al. 2004, section III.B and eq. 13.
    """
    _check("SSIM", image, other, WINDOW)
    x, y = _precise(image), _precise(other)
    mean_x, mean_y, xx, yy, xy = (_blurred(part) for part in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    light = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    spread = xx - mean_x.square() + yy - mean_y.square()
    structure = (2 * (xy - mean_x * mean_y) + c2) / (spread + c2)
    return (light * structure).mean(dim=(1, 2, 3))


def _blurred(x: Tensor) -> Tensor:
    """Weighted means over windows, one direction after the other."""
    offset = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    taps = (-offset.square() / (2 * 1.5**2)).exp()
    taps = (taps / taps.sum()).view(1, 1, WINDOW, 1)
    planes = F.conv2d(F.conv2d(x.flatten(0, 1).unsqueeze(1), taps), taps.mT)
    return planes.view(*x.shape[:2], *planes.shape[2:])


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(name: str, image: Tensor, other: Tensor, smallest: int) -> None:
    if image.shape != other.shape or image.ndim != 4 or min(image.shape[2:]) < smallest:
        raise ValueError(
            f"{name} compares images of one shape (B, C, H, W) with sides of at least {smallest}, got "
            f"{tuple(image.shape)} and {tuple(other.shape)}"
        )
