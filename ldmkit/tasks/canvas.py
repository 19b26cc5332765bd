"""Images made larger for a model and cut back, and results put into the images they belong to.

A border repeats the outermost pixels on the right and at the bottom, so that cutting it off gives the original place
of every pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padded(x: Tensor, multiple: int) -> Tensor:
    """(..., H, W) with H and W made multiples by repeating the last row and column; any dtype."""
    H, W = x.shape[-2:]
    return x if H % multiple == W % multiple == 0 else extended(x, bottom=-H % multiple, right=-W % multiple)


def extended(x: Tensor, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> Tensor:
    """(..., H, W) with so many repetitions of its border on each side."""
    H, W = x.shape[-2:]
    rows = torch.arange(-top, H + bottom, device=x.device).clamp(0, H - 1)
    columns = torch.arange(-left, W + right, device=x.device).clamp(0, W - 1)
    return x[..., rows[:, None], columns]


def cropped(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left (H, W) of images (B, C, ...)."""
    return images[:, :, : size[0], : size[1]]


def pasted(made: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """What was made where the mask is 1, the known image where it is 0, to the bit, and a blend between.

    Args:
        made: (k B, C, H, W), image by image the k results of each known image.
        known: (B, C, H, W).
        mask: (B, 1, H, W) in [0, 1].
    """
    return torch.lerp(beside(made, known), made, beside(made, mask))


def beside(made: Tensor, x: Tensor) -> Tensor:
    """What belongs to each input, repeated for each of its results, where they are.

    Args:
        made: (k B, C, H, W), the results, input by input.
        x: (B, ...).

    Returns:
        (k B, ...), on the device and in the precision of ``made``.
    """
    return x.to(made).repeat_interleave(len(made) // len(x), 0)


def rows(x: Tensor, count: int) -> Tensor:
    """One row repeated ``count`` times; several as they are."""
    return x.expand(count, *x.shape[1:]) if len(x) == 1 else x
