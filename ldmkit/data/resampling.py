"""Images to another size: linear, cubic and area, as the published degradations mean them.

"Plain" resampling looks at the 2 or 4 nearest pixels however much it shrinks; the antialiased one widens its kernel.
Images are (C, H, W); cubic ones overshoot, and the caller clips.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]


def linear(image: Tensor, size: Size) -> Tensor:
    """Plain bilinear resampling to (h, w)."""
    return functional.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


def cubic(image: Tensor, size: Size) -> Tensor:
    """Plain bicubic resampling to (h, w), a = -0.75."""
    return functional.interpolate(image[None], size, mode="bicubic", align_corners=False)[0]


def smooth_cubic(image: Tensor, size: Size) -> Tensor:
    """Antialiased bicubic resampling to (h, w), a = -0.5: what Pillow and MATLAB call bicubic."""
    return functional.interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=True)[0]


def area(image: Tensor, size: Size) -> Tensor:
    """The mean over the area that each new pixel covers; linear where neither side shrinks."""
    if size[0] >= image.shape[1] and size[1] >= image.shape[2]:
        return linear(image, size)
    return _shares(image.shape[1], size[0]).to(image) @ image @ _shares(image.shape[2], size[1]).to(image).T


def _shares(given: int, wanted: int) -> Tensor:
    """(wanted, given): how much of each new pixel is in each old one."""
    edges = torch.arange(wanted + 1, dtype=torch.float64) * given / wanted
    old = torch.arange(given, dtype=torch.float64)
    shared = torch.minimum(edges[1:, None], old + 1) - torch.maximum(edges[:-1, None], old)
    return shared.clamp(min=0) * wanted / given
