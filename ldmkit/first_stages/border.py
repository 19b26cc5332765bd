"""What every first stage refuses before it computes anything: images and latents that are not what they should be.

The names in the messages are the registry's, so that a reader of a long traceback knows which component spoke.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_images(name: str, image: Tensor, channels: int, multiple: int, dtype: torch.dtype | None) -> None:
    """Refuse what is not (B, channels, H, W) with H and W multiples of ``multiple``.

    Args:
        name: the first stage's registry name.
        image: what the caller gave.
        channels: image channels that it takes.
        multiple: what H and W must be multiples of.
        dtype: precision of its weights; None for one without weights.

    Raises:
        ValueError: wrong rank, channels, sides or dtype.
    """
    if not image.is_floating_point():
        raise ValueError(
            f"first stage '{name}' takes floating-point images in [-1, 1], got {image.dtype}: for bytes use "
            "image / 127.5 - 1"
        )
    _check(name, "images", image, channels, dtype)
    height, width = image.shape[2:]
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(
            f"first stage '{name}' takes images whose sides are multiples of {multiple}, got {height} x {width}: crop "
            f"or pad to {_ceil(height, multiple)} x {_ceil(width, multiple)}"
        )


def check_latents(name: str, z: Tensor, channels: int, dtype: torch.dtype | None) -> None:
    """Refuse what is not (B, channels, h, w).

    Args:
        name: the first stage's registry name.
        z: what the caller gave.
        channels: latent channels that it decodes.
        dtype: precision of its weights; None for one without weights.

    Raises:
        ValueError: wrong rank, channels or dtype.
    """
    if not z.is_floating_point():
        raise ValueError(
            f"first stage '{name}' decodes floating-point latents, got {z.dtype}: codes go to from_indices"
        )
    _check(name, "latents", z, channels, dtype)


def check_scale(name: str, scale: float) -> None:
    """Refuse a factor between raw and scaled latents that cannot be undone.

    Raises:
        ValueError: not a positive, finite number.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(
            f"first stage '{name}' needs a positive, finite scale, got {scale}: 1 leaves latents as they are"
        )


def _check(name: str, noun: str, x: Tensor, channels: int, dtype: torch.dtype | None) -> None:
    if x.ndim != 4:
        raise ValueError(
            f"first stage '{name}' takes {noun} of shape (B, {channels}, height, width), got {tuple(x.shape)}: add the "
            "missing dimension with unsqueeze(0) or flatten the extra ones into B"
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"first stage '{name}' takes {noun} of {channels} channels in dimension 1, got shape {tuple(x.shape)}: "
            "convert them, permute to channels-first, or use the first stage they were made for"
        )
    if dtype is not None and x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f"first stage '{name}' has weights in {dtype} and got {noun} in {x.dtype}: cast them with .to({dtype})"
        )


def _ceil(side: int, multiple: int) -> int:
    return max(1, -(-side // multiple)) * multiple
