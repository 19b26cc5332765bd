"""Gaussian kernels and blurring with them.

    k(u) ~ exp(-u^T S^-1 u / 2),    sum k = 1

An even side has no middle pixel: as in the published code the image then moves by half a pixel.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, fft

FLAT = 1e-8
"""A variance that leaves one pixel: narrower kernels do not differ."""


def gaussian(side: int, sigma: float, shift: float = 0.0) -> Tensor:
    """A round Gaussian.

    Args:
        side: K, in pixels.
        sigma: its standard deviation in pixels, at least 0.
        shift: how far right and down of the middle it looks, in pixels.

    Returns:
        (K, K) float64, sum 1; for sigma 0 the nearest pixels alone.
    """
    u = torch.arange(side, dtype=torch.float64) - (side - 1) / 2 - shift
    return _normalised((u[:, None] ** 2 + u**2) / 2, sigma**2)


def tilted_gaussian(side: int, variances: tuple[float, float], angle: float) -> Tensor:
    """A Gaussian with two axes.

    Args:
        side: K, in pixels.
        variances: along its first and second axis, in pixels squared, at least 0.
        angle: of the first axis, in radians.

    Returns:
        (K, K) float64, sum 1.
    """
    u = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = u[:, None], u[None, :]
    first = x * math.cos(angle) + y * math.sin(angle)
    second = x * math.sin(angle) - y * math.cos(angle)
    wide = max(*variances, FLAT)
    ratio = [wide / max(variance, FLAT) for variance in variances]
    return _normalised((first**2 * ratio[0] + second**2 * ratio[1]) / 2, wide)


def blurred(image: Tensor, kernel: Tensor) -> Tensor:
    """An image (C, H, W) blurred with a kernel (K, K), mirrored at its border without repeating it."""
    before, after = (kernel.shape[0] - 1) // 2, kernel.shape[0] // 2
    # numpy mirrors more than once where the kernel is larger than the image, torch refuses.
    padded = np.pad(image.numpy(), ((0, 0), (before, after), (before, after)), mode="reflect")
    size = (padded.shape[1], padded.shape[2])
    # By the transform: 25 x 25 weights for each pixel took a hundred times as long.
    spectrum = fft.rfft2(torch.from_numpy(padded)) * fft.rfft2(kernel.to(image), size).conj()
    mixed: Tensor = fft.irfft2(spectrum, size)
    return mixed[:, : image.shape[1], : image.shape[2]]


def _normalised(energy: Tensor, variance: float) -> Tensor:
    """exp(-energy / variance) of sum 1; from the nearest pixel on, or narrow kernels would underflow."""
    kernel = torch.exp((energy.min() - energy) / max(variance, FLAT))
    return kernel / kernel.sum()
