r"""A low-resolution image that the model sees noised, and the level of that noise.

.. math:: c = \alpha_s y + \sigma_s \epsilon, \qquad \mathrm{label} = s

A model trained so forgives flaws of the small image, the more the higher the level s it is told. The noise is drawn
per image by whoever makes the batch: nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldmkit.conditioners.inputs import indices, real
from ldmkit.conditioning import Batch, Conditioning
from ldmkit.process import VP


class NoisedLowRes(nn.Module):
    """Noises a low-resolution image at the size of the latent, and gives its noise level as the label.

    Args:
        channels: channels of the image.
        levels: T, the number of noise levels, and of the backbone's labels.
        trained_below: training draws levels in [0, trained_below).
        start: the first beta of the noise's own process, linear in sqrt(beta).
        end: the last beta.

    Reads ``low_res``: (B, channels, h, w) floating point in [-1, 1], (h, w) the latent's size. Reads ``noise_level``:
    (B,) integers in [0, T - 1]. Reads ``low_res_noise``: (B, channels, h, w) standard normal, a draw from
    each image's seed: task 'super-resolution' makes it.

    Raises:
        ValueError: fewer than 1 channel, or levels and betas that make no process; in a call, other shapes.

    Source: the x4 upscaler of Stable Diffusion 2 (levels below 350 of 1000; guidance keeps image and level).
    """

    reads: tuple[str, ...] = ("low_res", "noise_level", "low_res_noise")

    def __init__(
        self,
        channels: int = 3,
        levels: int = 1000,
        trained_below: int = 350,
        start: float = 1e-4,
        end: float = 2e-2,
    ) -> None:
        super().__init__()
        if channels < 1 or not 1 <= trained_below <= levels:
            raise ValueError(
                "conditioner 'noised-low-res' needs at least 1 channel and 1 <= trained_below <= levels, got "
                f"channels={channels}, trained_below={trained_below}, levels={levels}"
            )
        self.channels = channels
        self.levels = levels
        self.trained_below = trained_below
        self.start = start
        self.end = end
        self.process = VP(steps=levels, start=start, end=end)
        self.provides: Mapping[str, int] = {"concat": channels, "label": levels}

    def forward(self, batch: Batch) -> Conditioning:
        """The noised image as concat, its level as label."""
        low_res, label = self._read(batch)
        noise = real(batch, "low_res_noise", tuple(low_res.shape), "noised-low-res")
        level = self.process.level(label.cpu())  # tables are float64 on the CPU
        alpha, sigma = level.alpha.to(low_res), level.sigma.to(low_res)
        return Conditioning(concat=alpha * low_res + sigma * noise.to(low_res), label=label)

    def null(self, batch: Batch) -> Conditioning:
        """Zeros, a grey image, with the level; the published model was never trained with it."""
        low_res, label = self._read(batch)
        return Conditioning(concat=torch.zeros_like(low_res), label=label)

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        low_res = real(batch, "low_res", ("B", self.channels, "h", "w"), "noised-low-res")
        return low_res, indices(batch, "noise_level", (low_res.shape[0],), self.levels, "noised-low-res")
