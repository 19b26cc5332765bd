r"""Conditioning on an embedding with noise of a known level, so that it can be followed loosely.

.. math::
    c = [\mu + \alpha_k (e - \mu) + \sigma_k s \, \epsilon, \; \cos k\omega, \; \sin k\omega], \qquad
    \omega_i = 10000^{-2 i / E}

with the embedding e of E numbers, their mean :math:`\mu` and standard deviation s over many images, and a level k of a
variance-preserving process with cosine betas. Noise is not drawn here: it comes with the batch, per image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ldmkit.conditioners.inputs import indices, real
from ldmkit.conditioning import Batch, Conditioning
from ldmkit.process import VP

LEVEL = "image_embedding_level"
NOISE = "image_embedding_noise"


class NoisedEmbedding(nn.Module):
    """Gives an image embedding, noised, and the level of its noise as a vector; it has no parameters.

    Args:
        size: E, the numbers of an embedding; even.
        levels: K, the number of levels of noise.
        mean: of the embeddings' numbers, E of them. None: 0.
        std: their standard deviations, E of them. None: 1.

    Reads ``image_embedding``: (B, E) floating point. Reads ``image_embedding_level``: (B,) integers in [0, K - 1], and
    ``image_embedding_noise``: (B, E) standard normal, where the batch has them; without noise the level is 0 and
    none is added. Provides ``vector`` of width 2 E. Its null is zeros, level included.

    Raises:
        ValueError: an odd size or one below 2, fewer than 2 levels, or statistics that are not E numbers (standard
            deviations: positive ones); in a call, another shape or type, or a level without noise.

    Source: Ramesh et al. 2022 (arXiv 2204.06125), section 2.1; the image variations of Stable Diffusion 2.1.
    """

    reads: tuple[str, ...] = ("image_embedding",)
    also_reads: tuple[str, ...] = (LEVEL, NOISE)

    def __init__(
        self,
        size: int,
        levels: int = 1000,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if size < 2 or size % 2 or levels < 2:
            raise ValueError(
                "conditioner 'noised-embedding' needs an even size of at least 2 and at least 2 levels, got "
                f"{size} and {levels}"
            )
        for name, numbers in (("mean", mean), ("std", std)):
            if numbers is not None and len(numbers) != size:
                raise ValueError(f"conditioner 'noised-embedding' needs {size} numbers as {name}, got {len(numbers)}")
        if std is not None and min(std) <= 0:
            raise ValueError(f"conditioner 'noised-embedding' needs positive standard deviations, got {min(std)}")
        self.size = size
        self.levels = levels
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)
        self.process = VP("cosine", steps=levels)
        self.provides: Mapping[str, int] = {"vector": 2 * size}

    def forward(self, batch: Batch) -> Conditioning:
        """Vector (B, 2 E): the noised embedding, then its level."""
        e = self._embedding(batch)
        k, noise = self._level(batch, e), self._noise(batch, e)
        level = self.process.level(k.cpu())  # tables are float64 on the CPU
        mean, std = e.new_tensor(self.mean or [0.0]), e.new_tensor(self.std or [1.0])
        alpha, sigma = (factor.flatten(1, 3).to(e) for factor in (level.alpha, level.sigma))
        noised = mean + alpha * (e - mean) + sigma * std * noise
        return Conditioning(vector=torch.cat([noised, waves(k, self.size).to(e.dtype)], dim=1))

    def null(self, batch: Batch) -> Conditioning:
        """Zeros, in place of the embedding and of its level."""
        e = self._embedding(batch)
        return Conditioning(vector=e.new_zeros(len(e), 2 * self.size))

    def _embedding(self, batch: Batch) -> Tensor:
        return real(batch, "image_embedding", ("B", self.size), "noised-embedding")

    def _level(self, batch: Batch, e: Tensor) -> Tensor:
        if LEVEL not in batch:
            return torch.zeros(len(e), dtype=torch.int64, device=e.device)
        if NOISE not in batch:
            raise ValueError(
                f"conditioner 'noised-embedding' was given batch['{LEVEL}'] and no batch['{NOISE}']: give standard "
                "normal noise of the embedding's shape, or leave the level out"
            )
        return indices(batch, LEVEL, (len(e),), self.levels, "noised-embedding")

    def _noise(self, batch: Batch, e: Tensor) -> Tensor:
        if NOISE not in batch:
            return torch.zeros_like(e)
        return real(batch, NOISE, (len(e), self.size), "noised-embedding").to(e.dtype)


def waves(k: Tensor, width: int) -> Tensor:
    """Cosines and sines of k at falling frequencies, cosines first: (B,) -> (B, width) float32."""
    steps = torch.arange(width // 2, dtype=torch.float32, device=k.device)
    angles = k.float()[:, None] * torch.exp(steps * (-math.log(10000.0) / (width // 2)))
    return torch.cat([angles.cos(), angles.sin()], dim=1)
