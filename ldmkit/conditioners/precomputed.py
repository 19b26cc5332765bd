"""Conditioning that already exists as a tensor: embeddings of another model, measurements, feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from ldmkit.conditioners.inputs import Shape, real
from ldmkit.conditioning import Batch, Conditioning

SHAPES: dict[str, tuple[str, ...]] = {
    "context": ("B", "L", "size"),
    "vector": ("B", "size"),
    "concat": ("B", "size", "h", "w"),
}


class Precomputed(nn.Module):
    """Passes a tensor of the batch to the backbone unchanged; its null is zeros.

    Args:
        key: the batch key.
        slot: ``context`` for (B, L, size), ``vector`` for (B, size), ``concat`` for (B, size, h, w).
        size: the width of a context or vector, the channels of a concat.

    Reads ``key``: floating point, of the slot's shape.

    Raises:
        ValueError: an unknown slot or a size below 1; in a call, another shape, or a tensor that is not floating point.

    Source: retrieval-augmented models of the original take CLIP embeddings as context and zeros as their null.
    """

    def __init__(self, key: str, slot: Literal["context", "vector", "concat"], size: int) -> None:
        super().__init__()
        if slot not in SHAPES:
            raise ValueError(
                f"conditioner 'precomputed' fills one of {list(SHAPES)}, got {slot!r}; a label has no zeros that mean "
                "nothing: use 'class-index'"
            )
        if size < 1:
            raise ValueError(f"conditioner 'precomputed' needs a size of at least 1, got {size}")
        self.key = key
        self.slot = slot
        self.size = size
        self.reads: tuple[str, ...] = (key,)
        self.provides: Mapping[str, int] = {slot: size}

    def forward(self, batch: Batch) -> Conditioning:
        """Pass ``batch[key]`` on."""
        shape: Shape = tuple(self.size if letter == "size" else letter for letter in SHAPES[self.slot])
        return Conditioning(**{self.slot: real(batch, self.key, shape, "precomputed")})

    def null(self, batch: Batch) -> Conditioning:
        """Zeros of the same shape."""
        return self.forward(batch).map(torch.zeros_like)
