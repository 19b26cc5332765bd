"""First stages: between images and the latents that are diffused.

``encode(image, noise=None)`` gives latents that are already scaled, ``decode(z)`` undoes it; ``factor``, ``channels``,
``image_channels`` and ``multiple`` say which shapes they take.
"""

from ldmkit.first_stages.exact import TiledExact
from ldmkit.first_stages.kl import KL, Gaussian
from ldmkit.first_stages.pixel import Pixel
from ldmkit.first_stages.tiled import Tiled
from ldmkit.first_stages.vq import VQ, CodebookUsage, Quantized, codebook_usage

__all__ = ["KL", "VQ", "CodebookUsage", "Gaussian", "Pixel", "Quantized", "Tiled", "TiledExact", "codebook_usage"]
