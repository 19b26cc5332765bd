"""What CLIP reads of an image: a square of its own size, normalised by the statistics of its training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor
from torch.nn import functional as F

Statistics = tuple[float, ...]


def statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, record: Mapping[str, Any]
) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation per channel: those given, else those recorded with the weights, else OpenAI's."""
    found = mean or record.get("mean", OPENAI_DATASET_MEAN), std or record.get("std", OPENAI_DATASET_STD)
    return tuple(found[0]), tuple(found[1])


def normalised(image: Tensor, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resize without cropping, and ``((image + 1) / 2 - mean) / std``.

    Args:
        image: (B, C, H, W) in [-1, 1].
        size: height and width.
        mean: per channel, of images in [0, 1].
        std: per channel.

    Returns:
        (B, C, *size), float32 at least.
    """
    precise = image.to(torch.promote_types(image.dtype, torch.float32))  # torch antialiases nothing shorter
    x = F.interpolate(precise, size=size, mode="bicubic", antialias=True)
    center, spread = (torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1) for values in (mean, std))
    return ((x + 1) / 2 - center) / spread
