"""The ``pixel`` first stage: the image is its own latent, so that diffusion in pixels is the same code (f = 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldmkit.first_stages.border import check_images, check_latents, check_scale


class Pixel(nn.Module):
    """z = scale * image; no parameters.

    Args:
        channels: of the image and of the latent.
        scale: what pixels are multiplied by; it becomes the buffer ``scale``, 0-d float32.

    Attributes:
        factor: 1, image sides per latent side.
        multiple: 1, what the sides of an image must be multiples of.
        image_channels: ``channels``.

    Raises:
        ValueError: a scale that is not positive.

    Source: Rombach et al. 2022, section 4.1, LDM-1.
    """

    factor = 1
    multiple = 1
    scale: Tensor

    def __init__(self, channels: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        check_scale("pixel", scale)
        if channels < 1:
            raise ValueError(f"first stage 'pixel' needs at least 1 channel, got {channels}")
        self.channels = self.image_channels = channels
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """scale * image.

        Args:
            image: (B, channels, H, W) in [-1, 1].
            noise: without effect: an image leaves nothing to sample.

        Returns:
            (B, channels, H, W).

        Raises:
            ValueError: wrong rank, channels or dtype.
        """
        del noise
        check_images("pixel", image, self.channels, self.multiple, None)
        return self.scale * image

    def decode(self, z: Tensor) -> Tensor:
        """z / scale.

        Args:
            z: (B, channels, H, W).

        Returns:
            (B, channels, H, W), about in [-1, 1].

        Raises:
            ValueError: wrong rank, channels or dtype.
        """
        check_latents("pixel", z, self.channels, None)
        return z / self.scale
