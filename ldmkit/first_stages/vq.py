r"""The ``vq`` first stage: an autoencoder whose decoder sees only vectors of a learned codebook.

With codes :math:`e_k`, the encoder's output h is replaced by its nearest code,

.. math::

    z_q = e_{k^*}, \quad k^* = \arg\min_k \lVert h - e_k \rVert^2, \qquad
    L = \lVert \operatorname{sg}[z_q] - h \rVert^2 + \lVert z_q - \operatorname{sg}[h] \rVert^2

(one of the two terms weighted by beta), and the gradient passes :math:`z_q` as if it were h. The diffusion model works
on h itself, *before* quantisation: :meth:`VQ.encode` returns ``scale * h``, and quantising is the decoder's first
layer. Reconstruction and adversarial losses are not here.

Source: van den Oord et al. 2017 (arXiv 1711.00937); Esser et al. 2021 (arXiv 2012.09841); Rombach et al. 2022, sections
3.1 and G.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmkit.first_stages.autoencoder import Decoder, Encoder, Pyramid
from ldmkit.first_stages.border import check_images, check_latents, check_scale

CHUNK = 2**21
"""Distances that are held at once: 8 MiB, about what a processor's cache takes."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What quantising raw latents gives.

    Args:
        z: (B, C, h, w), the codes; their gradient goes to the latents unchanged.
        indices: (B, h, w) int64, which code.
        loss: (B,), the codebook loss, a mean over everything but the batch.
    """

    z: Tensor
    indices: Tensor
    loss: Tensor


@dataclass(frozen=True, eq=False)
class CodebookUsage:
    """How much of a codebook a set of indices uses.

    Args:
        used: 0-d int64, how many codes occur.
        perplexity: 0-d float32, exp of the entropy in nats: 1 if one code does all the work, the codebook's size if
            all do the same.
    """

    used: Tensor
    perplexity: Tensor


def codebook_usage(indices: Tensor, size: int) -> CodebookUsage:
    """Count the codes that occur.

    Args:
        indices: int64 of any shape, in [0, size).
        size: codes in the codebook.
    """
    flat = indices.flatten()
    counts = torch.zeros(size, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
    share = counts / flat.numel()
    return CodebookUsage(used=(counts > 0).sum(), perplexity=torch.special.entr(share).sum().exp())


class Codebook(nn.Module):
    """The codes e_k and the search for the nearest.

    Args:
        size: K, how many codes.
        channels: C, the width of one.
        beta: weight of one of the loss's two terms.
        beta_on: which: ``codebook``, the term that moves codes to latents, or ``commitment``, the one that moves
            latents to codes.

    Raises:
        ValueError: another ``beta_on``.
    """

    def __init__(self, size: int, channels: int, beta: float, beta_on: str) -> None:
        super().__init__()
        weights = {"codebook": (beta, 1.0), "commitment": (1.0, beta)}
        if beta_on not in weights:
            raise ValueError(f"first stage 'vq' takes beta_on 'codebook' or 'commitment', got {beta_on!r}")
        self.codebook_weight, self.commitment_weight = weights[beta_on]
        self.embedding = nn.Embedding(size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def nearest(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of the codes nearest to raw latents (B, C, h, w)."""
        rows = z.permute(0, 2, 3, 1)
        return nearest_rows(rows.flatten(0, 2), self.embedding.weight).view(rows.shape[:3])

    def codes(self, indices: Tensor) -> Tensor:
        """Codes (B, C, h, w) of indices (B, h, w)."""
        return F.embedding(indices, self.embedding.weight).permute(0, 3, 1, 2).contiguous()

    def snap(self, z: Tensor) -> Tensor:
        """Raw latents to their nearest codes, both (B, C, h, w), with a straight-through gradient."""
        return straight_through(z, self.codes(self.nearest(z)))

    def forward(self, z: Tensor) -> Quantized:
        """Quantise raw latents (B, C, h, w) for training."""
        indices = self.nearest(z)
        z_q = self.codes(indices)
        codebook = (z_q - z.detach()).square().mean(dim=(1, 2, 3))
        commitment = (z_q.detach() - z).square().mean(dim=(1, 2, 3))
        loss = self.codebook_weight * codebook + self.commitment_weight * commitment
        return Quantized(straight_through(z, z_q), indices, loss)


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Exactly the value of ``z_q`` with the gradient of ``z``: what is added is zero."""
    return (z - z.detach()) + z_q.detach()


@torch.no_grad()
def nearest_rows(z: Tensor, codes: Tensor) -> Tensor:
    """argmin_k |z - e_k|^2 = argmin_k |e_k|^2 - 2 z e_k, the lowest index among equals.

    In float32 at least, under autocast too, and in chunks: all distances of a 64 x 64 latent to 8,192 codes would take
    128 MiB.

    Args:
        z: (N, C).
        codes: (K, C).

    Returns:
        (N,) int64 in [0, K).
    """
    precise = torch.promote_types(codes.dtype, torch.float32)
    z, codes = z.to(precise), codes.to(precise)
    with _no_autocast(z.device.type):
        norms = codes.square().sum(dim=1)
        chunks = torch.split(z, max(1, CHUNK // codes.shape[0]))
        return torch.cat([torch.addmm(norms, chunk, codes.T, alpha=-2.0).argmin(dim=1) for chunk in chunks])


def _no_autocast(device: str) -> AbstractContextManager[object]:
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


class VQ(nn.Module):
    """Autoencoder with a codebook; loads the published ``VQModel`` and ``VQModelInterface`` files by their own names.

    The keywords against the original's configuration, beside which ``double_z`` is always false:

    ====================  =====================================================================
    keyword               original
    ====================  =====================================================================
    ``channels``          ``embed_dim``
    ``codebook_size``     ``n_embed``
    ``z_channels``        ``ddconfig.z_channels``
    ``base_channels``     ``ddconfig.ch``
    ``channel_mult``      ``ddconfig.ch_mult``
    ``num_res_blocks``    ``ddconfig.num_res_blocks``
    ``attn_resolutions``  ``ddconfig.attn_resolutions``
    ``attention``         ``ddconfig.attn_type``: False for ``none``
    ``resolution``        ``ddconfig.resolution``
    ``image_channels``    ``ddconfig.in_channels`` and ``ddconfig.out_ch``
    ``dropout``           ``ddconfig.dropout``
    ``beta``              ``beta`` of ``VectorQuantizer2``
    ``beta_on``           its ``legacy``: ``codebook`` for True, ``commitment`` for False
    ``scale``             ``scale_factor`` of the diffusion model
    ====================  =====================================================================

    Args:
        channels: C, channels of the latent and of a code.
        codebook_size: K, how many codes.
        z_channels: channels between the latent's 1x1 convolutions and the network; None: as many as ``channels``.
        base_channels: channels at the image's own resolution, a multiple of 32.
        channel_mult: one multiplier per level, highest resolution first; n levels make the factor 2^(n - 1).
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: the levels that attend, by their side in pixels at ``resolution``.
        attention: False for no attention at all; True attends in the middle whatever ``attn_resolutions`` says.
        resolution: side in pixels of the training images; images of any size are taken.
        image_channels: channels of the image.
        dropout: rate inside the residual blocks.
        beta: weight of one term of the codebook loss.
        beta_on: the term: ``codebook``, as the published models were trained, or ``commitment``, as the paper on
            VQ-VAE has it.
        scale: what raw latents are multiplied by. It becomes the buffer ``scale``, 0-d float32, and a file that
            holds one replaces it.

    Attributes:
        factor: image sides per latent side.
        multiple: what the sides of an image must be multiples of; equal to ``factor``.

    Raises:
        ValueError: options that make no network, see :class:`~ldmkit.first_stages.autoencoder.Pyramid`, another
            ``beta_on``, or a scale that is not positive.

    Source: Rombach et al. 2022, appendix G, table 8.
    """

    scale: Tensor

    def __init__(
        self,
        channels: int = 3,
        codebook_size: int = 8192,
        z_channels: int | None = None,
        base_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 4),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (),
        attention: bool = True,
        resolution: int = 256,
        image_channels: int = 3,
        dropout: float = 0.0,
        beta: float = 0.25,
        beta_on: Literal["codebook", "commitment"] = "codebook",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_scale("vq", scale)
        if codebook_size < 1:
            raise ValueError(f"first stage 'vq' needs a codebook_size of at least 1, got {codebook_size}")
        self.channels = channels
        self.codebook_size = codebook_size
        self.z_channels = z_channels
        self.base_channels = base_channels
        self.channel_mult = tuple(channel_mult)
        self.num_res_blocks = num_res_blocks
        self.attn_resolutions = tuple(attn_resolutions)
        self.attention = attention
        self.resolution = resolution
        self.image_channels = image_channels
        self.dropout = dropout
        self.beta = beta
        self.beta_on = beta_on
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

        pyramid = Pyramid(
            base_channels, self.channel_mult, num_res_blocks, self.attn_resolutions, resolution, attention, dropout
        )
        self.factor = self.multiple = pyramid.factor
        width = channels if z_channels is None else z_channels
        self.encoder = Encoder(image_channels, width, pyramid)
        self.quant_conv = nn.Conv2d(width, channels, 1)
        self.quantize = Codebook(codebook_size, channels, beta, beta_on)
        self.post_quant_conv = nn.Conv2d(channels, width, 1)
        self.decoder = Decoder(width, image_channels, pyramid)

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """scale * h, before quantisation: what the diffusion model works on.

        Args:
            image: (B, image_channels, H, W) in [-1, 1].
            noise: without effect: the encoder is deterministic and leaves nothing to sample.

        Returns:
            (B, C, H / factor, W / factor).

        Raises:
            ValueError: wrong rank, channels, sides or dtype.
        """
        del noise
        return self.scale * self._encode(image)

    def decode(self, z: Tensor) -> Tensor:
        """The image of the codes nearest to a scaled latent; the gradient goes through as if nothing were quantised.

        Args:
            z: (B, C, h, w), as :meth:`encode` gives it.

        Returns:
            (B, image_channels, factor h, factor w), about in [-1, 1] and not clamped.

        Raises:
            ValueError: wrong rank, channels or dtype.
        """
        self._check_latents(z)
        return self._decode(self.quantize.snap(z / self.scale))

    def decode_unquantized(self, z: Tensor) -> Tensor:
        """The image of a scaled latent as it is, the original's ``force_not_quantize``; arguments as :meth:`decode`."""
        self._check_latents(z)
        return self._decode(z / self.scale)

    def nearest_code(self, z: Tensor) -> Tensor:
        """Quantise a scaled latent: (B, C, h, w) -> (B, C, h, w), both scaled, with a straight-through gradient.

        Raises:
            ValueError: wrong rank, channels or dtype.
        """
        self._check_latents(z)
        return self.scale * self.quantize.snap(z / self.scale)

    def to_indices(self, z: Tensor) -> Tensor:
        """Which codes are nearest to a scaled latent: (B, C, h, w) -> (B, h, w) int64 in [0, codebook_size).

        Raises:
            ValueError: wrong rank, channels or dtype.
        """
        self._check_latents(z)
        return self.quantize.nearest(z / self.scale)

    def from_indices(self, indices: Tensor) -> Tensor:
        """The scaled latent of codes: (B, h, w) int64 in [0, codebook_size) -> (B, C, h, w).

        Raises:
            ValueError: wrong rank or dtype.
        """
        if indices.ndim != 3 or indices.dtype != torch.int64:
            raise ValueError(
                "first stage 'vq' takes codes as int64 of shape (B, height, width), got "
                f"{indices.dtype} of shape {tuple(indices.shape)}"
            )
        return self.scale * self.quantize.codes(indices)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Quantized]:
        """What training compares: the reconstruction, and the codes with their loss; arguments as :meth:`encode`.

        Raises:
            ValueError: as :meth:`encode`.
        """
        del noise
        quantized: Quantized = self.quantize(self._encode(image))
        return self._decode(quantized.z), quantized

    def _encode(self, image: Tensor) -> Tensor:
        check_images("vq", image, self.image_channels, self.multiple, self.quant_conv.weight.dtype)
        h: Tensor = self.quant_conv(self.encoder(image))
        return h

    def _decode(self, raw: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(raw))
        return image

    def _check_latents(self, z: Tensor) -> None:
        check_latents("vq", z, self.channels, self.post_quant_conv.weight.dtype)
