r"""How different two images look to a network of timm.

.. math::

    d(x, y) = \frac{1}{K} \sum_{k=1}^{K} \frac{1}{h_k w_k} \sum_{hw}
              \left\lVert \frac{f_k(x)_{hw}}{\lVert f_k(x)_{hw} \rVert}
                        - \frac{f_k(y)_{hw}}{\lVert f_k(y)_{hw} \rVert} \right\rVert^2

over K feature maps, each normalised along its channels: LPIPS without its learned weights, which belong to networks of
other libraries. d is 0 for equal images and at most 4.

Source: Zhang et al. 2018 (arXiv 1801.03924), eq. 1 with all weights 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmkit_timm.network import network, normalised, reads


class TimmDistance(nn.Module):
    """A perceptual distance between images, differentiable in both; the network is frozen.

    Args:
        model: a name of timm's table, such as ``vgg16.tv_in1k``.
        source: the weights: a file, or a hub id such as ``timm/vgg16.tv_in1k``. None: random weights, which compare
            textures poorly but need no file.
        arguments: keywords of the network's constructor in timm's words.
        layers: which of its feature maps, 0 the first. None: all.

    Raises:
        ValueError: a name that timm does not have, or a layer that the network does not have; in a call, images of
            two shapes or of another number of channels.
        CheckpointError: ``source`` holds other weights.
    """

    def __init__(
        self,
        model: str,
        *,
        source: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network(model, arguments or {}, source, "timm-distance")
        count = len(self.network.feature_info)
        self.layers = list(range(count)) if layers is None else list(layers)
        if not self.layers or not all(0 <= layer < count for layer in self.layers):
            raise ValueError(f"'{model}' has feature maps 0 to {count - 1}, got layers={layers}")
        self._size, self._mean, self._std = reads(self.network, arguments or {})
        self.requires_grad_(False)
        self.train()

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        """The distance (B,) of each pair.

        Args:
            image: (B, C, H, W) in [-1, 1]; compared at the network's own size.
            other: (B, C, H, W) in [-1, 1].
        """
        if image.shape != other.shape or image.ndim != 4 or image.shape[1] != len(self._mean):
            raise ValueError(
                f"a distance needs two batches of shape (B, {len(self._mean)}, H, W), got {tuple(image.shape)} and "
                f"{tuple(other.shape)}"
            )
        pairs = zip(self._features(image), self._features(other), strict=True)
        return torch.stack([(f - g).square().sum(dim=1).mean(dim=(1, 2)) for f, g in pairs]).mean(dim=0)

    def train(self, mode: bool = True) -> Self:
        """Always eval mode: a measure does not change while it measures."""
        del mode
        return super().train(False)

    def _features(self, image: Tensor) -> list[Tensor]:
        like = next(self.network.parameters())
        x = normalised(image.to(like.device), self._size, self._mean, self._std).to(like.dtype)
        features = self.network.forward_intermediates(x, self.layers, output_fmt="NCHW", intermediates_only=True)
        return [F.normalize(feature, dim=1) for feature in features]
