r"""Conditioning on depth: a map of one channel, at the size of the latent and in a range of its own.

.. math:: c = 2 \frac{d - \min d}{\max d - \min d + 10^{-3}} - 1, \qquad d = \mathrm{bicubic}(\mathrm{depth})

The smallest and the largest value are each image's own, so the unit of the map does not matter; its sense does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmkit.conditioners.inputs import real
from ldmkit.conditioning import Batch, Conditioning


class Depth(nn.Module):
    """Resizes a depth map to the latent's size and stretches it to [-1, 1]; it has no parameters.

    Args:
        factor: how much smaller the latent is than the map; it must be the first stage's.

    Reads ``depth``: (B, 1, H, W) floating point, larger = nearer, in any unit; H and W are the image's, multiples of
    ``factor``.

    Raises:
        ValueError: a factor below 1; in a call, another shape, or integers.

    Source: the depth-guided model of Stable Diffusion 2, which computes its maps with MiDaS.
    """

    reads: tuple[str, ...] = ("depth",)

    def __init__(self, factor: int = 8) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"conditioner 'depth' needs a factor of at least 1, got {factor}")
        self.factor = factor
        self.provides: Mapping[str, int] = {"concat": 1}

    def forward(self, batch: Batch) -> Conditioning:
        """Concat of shape (B, 1, H / factor, W / factor) in [-1, 1]."""
        depth, size = self._depth(batch)
        small = F.interpolate(depth, size=size, mode="bicubic", align_corners=False)
        low, high = (extreme(small, dim=(1, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
        return Conditioning(concat=2 * (small - low) / (high - low + 1e-3) - 1)

    def null(self, batch: Batch) -> Conditioning:
        """Zeros, the same depth everywhere.

        The published model keeps the map in both halves of guidance, and was never trained with this null.
        """
        depth, size = self._depth(batch)
        return Conditioning(concat=depth.new_zeros(len(depth), 1, *size))

    def _depth(self, batch: Batch) -> tuple[Tensor, tuple[int, int]]:
        """The map, and the size of the latent."""
        depth = real(batch, "depth", ("B", 1, "H", "W"), "depth")
        H, W = depth.shape[2:]
        if H % self.factor or W % self.factor:
            raise ValueError(
                f"conditioner 'depth' needs a map of the image's size, in multiples of {self.factor}, got {H} x {W}: "
                "resize it to the image, or crop and pad it together with the image"
            )
        return depth, (H // self.factor, W // self.factor)
