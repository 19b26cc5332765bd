r"""How much signal a latent carries, and the scale it should have.

A model of latents sees :math:`z_t = \alpha_t z + \sigma_t \epsilon`. What it can see of the image at time t depends on

.. math:: \mathrm{SNR}_t = \mathrm{Var}(z) \, \alpha_t^2 / \sigma_t^2

so that the same schedule fixes the layout of an image early for one first stage and late for another. Latents with a
large variance (KL with a weak prior) are divided by their standard deviation, one number for all components; those of
VQ stages are near 1 as they are. This decides how far a model generalises to sizes larger than it was trained at.

Source: arXiv 2112.10752, appendix D.1 and section 4.3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmkit.composition import FirstStage
from ldmkit.denoiser import precision
from ldmkit.noise import Noise
from ldmkit.process import Level


@dataclass(frozen=True)
class LatentStatistics:
    """Moments of the latents of many images.

    Args:
        images: how many.
        mean: of each component, over images and places.
        std: of each component.
        overall: the standard deviation of all numbers around their common mean.
        minimum: the smallest number.
        maximum: the largest.
    """

    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    overall: float
    minimum: float
    maximum: float

    @property
    def rescaling(self) -> float:
        """What to multiply the first stage's ``scale`` by, so that latents have unit standard deviation.

        Raises:
            ValueError: the latents are all equal.
        """
        if not self.overall > 0:
            raise ValueError(f"no scale gives latents that are all equal, to {self.minimum:g}, a deviation of 1")
        return 1 / self.overall

    def snr(self, level: Level[float]) -> float:
        """Var(z) alpha**2 / sigma**2 at a level; infinite where it is clean."""
        return float("inf") if level.sigma == 0 else (self.overall * level.alpha / level.sigma) ** 2


def moments(latents: Iterable[Tensor]) -> LatentStatistics:
    """Measure latents, batch by batch, in float64; nothing is kept of a batch.

    Args:
        latents: (B, C, h, w) each, of any number and sizes and of one C.

    Raises:
        ValueError: no images, another rank, or latents that are not finite.
    """
    count, images = 0, 0
    mean = squares = torch.zeros((), dtype=torch.float64)
    low, high = float("inf"), float("-inf")
    for batch in latents:
        if batch.ndim != 4:
            raise ValueError(f"latents are (B, C, h, w), got {tuple(batch.shape)}")
        z = batch.detach().cpu().double()
        if not bool(z.isfinite().all()):
            raise ValueError(f"images {images} to {images + len(z) - 1} have latents that are not finite")
        variance, here = torch.var_mean(z, dim=(0, 2, 3), correction=0)
        n = z.numel() // z.shape[1]
        delta = here - mean
        count, images = count + n, images + len(z)
        mean = mean + delta * (n / count)
        squares = squares + variance * n + delta**2 * (n * (count - n) / count)
        low, high = min(low, float(z.min())), max(high, float(z.max()))
    if not images:
        raise ValueError("latent statistics need at least one image")
    within = squares / count
    overall = float((within.mean() + mean.var(correction=0)).sqrt())
    return LatentStatistics(images, tuple(mean.tolist()), tuple(within.sqrt().tolist()), overall, low, high)


@torch.no_grad()
def latent_statistics(
    first_stage: FirstStage, batches: Iterable[Tensor], seed: int | None = 0, device: torch.device | None = None
) -> LatentStatistics:
    """Encode images and measure their latents; nothing is kept of a batch.

    Args:
        first_stage: of a model or alone; its ``scale`` counts.
        batches: (B, C, H, W) in [-1, 1] each, of any number and sizes.
        seed: of the first image's draw from its posterior, as training draws; None: the mode.
        device: where to encode; None: where the batches are.

    Raises:
        ValueError: no images, or latents that are not finite.
    """
    return moments(_encoded(first_stage, batches, seed, device))


def _encoded(
    first_stage: FirstStage, batches: Iterable[Tensor], seed: int | None, device: torch.device | None
) -> Iterator[Tensor]:
    images, dtype = 0, precision(first_stage)
    for batch in batches:
        batch = batch.to(batch.device if device is None else device, dtype)
        seeds = None if seed is None else range(seed + images, seed + images + len(batch))
        yield first_stage.encode(batch, None if seeds is None else posterior_noise(first_stage, batch, seeds))
        images += len(batch)


def posterior_noise(first_stage: FirstStage, image: Tensor, seeds: Sequence[int]) -> Tensor:
    """What draws the latents of images, (B, C, h, w): a function of the seeds."""
    height, width = (side // first_stage.factor for side in image.shape[2:])
    return (
        Noise(tuple(seeds)).on("posterior").constant(image.new_empty(len(image), first_stage.channels, height, width))
    )
