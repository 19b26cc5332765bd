r"""The ``kl`` first stage: an autoencoder whose latent is a Gaussian held close to the standard one.

.. math::

    q(z \mid x) = \mathcal N(\mu(x), \operatorname{diag} \sigma^2(x)), \qquad
    \mathrm{KL}(q \,\|\, \mathcal N(0, 1)) = \tfrac12 \sum (\mu^2 + \sigma^2 - 1 - \log \sigma^2)

The diffusion model sees :math:`s \, z` with one scalar s, the ``scale``, that brings the latents to about unit standard
deviation: :meth:`KL.encode` applies it, :meth:`KL.decode` undoes it, and nothing else knows of it. Losses are not here.

Source: Rombach et al. 2022 (arXiv 2112.10752), section 3.1 and appendix G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldmkit.first_stages.autoencoder import Decoder, Encoder, Pyramid
from ldmkit.first_stages.border import check_images, check_latents, check_scale


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A diagonal Gaussian over raw (unscaled) latents.

    Args:
        mean: (B, C, h, w), which is its mode too.
        logvar: (B, C, h, w), the logarithm of the variance, clamped to [-30, 20].
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Gaussian:
        """From a network's output: (B, 2 C, h, w), the mean's channels first."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        """(B, C, h, w), the standard deviation."""
        return (0.5 * self.logvar).exp()

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise.

        Args:
            noise: (B, C, h, w), standard normal, one draw per element.

        Raises:
            ValueError: noise of another shape, which would share draws between images or elements.
        """
        if noise.shape != self.mean.shape:
            raise ValueError(
                f"a posterior of shape {tuple(self.mean.shape)} needs noise of that shape, got {tuple(noise.shape)}"
            )
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """KL divergence from the standard normal in nats, (B,), summed over everything but the batch."""
        nats = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return nats.sum(dim=(1, 2, 3))


class KL(nn.Module):
    """Autoencoder with a Gaussian latent; loads the published ``AutoencoderKL`` files by their own names.

    The keywords against the original's configuration, beside which ``double_z`` is always true:

    ====================  =====================================================================
    keyword               original
    ====================  =====================================================================
    ``channels``          ``embed_dim``
    ``z_channels``        ``ddconfig.z_channels``
    ``base_channels``     ``ddconfig.ch``
    ``channel_mult``      ``ddconfig.ch_mult``
    ``num_res_blocks``    ``ddconfig.num_res_blocks``
    ``attn_resolutions``  ``ddconfig.attn_resolutions``
    ``attention``         ``ddconfig.attn_type``: False for ``none``
    ``resolution``        ``ddconfig.resolution``
    ``image_channels``    ``ddconfig.in_channels`` and ``ddconfig.out_ch``
    ``dropout``           ``ddconfig.dropout``
    ``scale``             ``scale_factor`` of the diffusion model
    ====================  =====================================================================

    Args:
        channels: C, channels of the latent.
        z_channels: channels between the latent's 1x1 convolutions and the network; None: as many as ``channels``.
        base_channels: channels at the image's own resolution, a multiple of 32.
        channel_mult: one multiplier per level, highest resolution first; n levels make the factor 2^(n - 1).
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: the levels that attend, by their side in pixels at ``resolution``.
        attention: False for no attention at all; True attends in the middle whatever ``attn_resolutions`` says.
        resolution: side in pixels of the training images; images of any size are taken.
        image_channels: channels of the image.
        dropout: rate inside the residual blocks.
        scale: what raw latents are multiplied by. It becomes the buffer ``scale``, 0-d float32, and a file that
            holds one replaces it.

    Attributes:
        factor: image sides per latent side.
        multiple: what the sides of an image must be multiples of; equal to ``factor``.

    Raises:
        ValueError: options that make no network, see :class:`~ldmkit.first_stages.autoencoder.Pyramid`, or a scale
            that is not positive.

    Source: Rombach et al. 2022, appendix G, table 8.
    """

    scale: Tensor

    def __init__(
        self,
        channels: int = 4,
        z_channels: int | None = None,
        base_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (),
        attention: bool = True,
        resolution: int = 256,
        image_channels: int = 3,
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_scale("kl", scale)
        self.channels = channels
        self.z_channels = z_channels
        self.base_channels = base_channels
        self.channel_mult = tuple(channel_mult)
        self.num_res_blocks = num_res_blocks
        self.attn_resolutions = tuple(attn_resolutions)
        self.attention = attention
        self.resolution = resolution
        self.image_channels = image_channels
        self.dropout = dropout
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

        pyramid = Pyramid(
            base_channels, self.channel_mult, num_res_blocks, self.attn_resolutions, resolution, attention, dropout
        )
        self.factor = self.multiple = pyramid.factor
        width = channels if z_channels is None else z_channels
        self.encoder = Encoder(image_channels, 2 * width, pyramid)
        self.quant_conv = nn.Conv2d(2 * width, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, width, 1)
        self.decoder = Decoder(width, image_channels, pyramid)

    def posterior(self, image: Tensor) -> Gaussian:
        """The distribution of an image's raw latent.

        Args:
            image: (B, image_channels, H, W) in [-1, 1].

        Returns:
            Over (B, C, H / factor, W / factor), not scaled.

        Raises:
            ValueError: wrong rank, channels, sides or dtype.
        """
        check_images("kl", image, self.image_channels, self.multiple, self.quant_conv.weight.dtype)
        return Gaussian.from_moments(self.quant_conv(self.encoder(image)))

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """scale * (mean + std * noise).

        Args:
            image: (B, image_channels, H, W) in [-1, 1].
            noise: (B, C, H / factor, W / factor), standard normal; None for the mode.

        Returns:
            (B, C, H / factor, W / factor), of about unit standard deviation.

        Raises:
            ValueError: an image of wrong rank, channels, sides or dtype, or noise of another shape than the latent.
        """
        posterior = self.posterior(image)
        return self.scale * (posterior.mean if noise is None else posterior.sample(noise))

    def decode(self, z: Tensor) -> Tensor:
        """The image of a scaled latent.

        Args:
            z: (B, C, h, w), as :meth:`encode` gives it.

        Returns:
            (B, image_channels, factor h, factor w), about in [-1, 1] and not clamped.

        Raises:
            ValueError: wrong rank, channels or dtype.
        """
        check_latents("kl", z, self.channels, self.post_quant_conv.weight.dtype)
        return self._decode(z / self.scale)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Gaussian]:
        """What training compares: the reconstruction through a sample (the mode without noise) and the posterior.

        Raises:
            ValueError: as :meth:`encode`.
        """
        posterior = self.posterior(image)
        return self._decode(posterior.mean if noise is None else posterior.sample(noise)), posterior

    def _decode(self, raw: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(raw))
        return image
