r"""The convolutional encoder and decoder that the ``kl`` and the ``vq`` first stage share.

Level L of n levels holds ``base_channels * channel_mult[L]`` channels at :math:`2^{-L}` of the image's sides, in the
encoder and in the decoder alike, so that the downsampling factor is :math:`2^{n-1}`:

.. code-block:: text

    encoder   conv_in -> down.0 -> down.1 -> ... -> mid -> norm_out, swish, conv_out
    decoder   conv_in -> mid -> ... -> up.1 -> up.0 -> norm_out, swish, conv_out

Modules carry the names of the published files. Three habits set this network apart from the diffusion UNet: its
GroupNorm has eps 1e-6, its downsampling pads on the right and at the bottom only, and it attends at resolutions that
are given in pixels. Nothing here regularises, scales or quantises a latent.

Source: Esser et al. 2021 (arXiv 2012.09841), table 7; Rombach et al. 2022, appendix G.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32


@dataclass(frozen=True)
class Pyramid:
    """The levels of an encoder and, read backwards, of its decoder.

    Args:
        base_channels: channels at the image's own resolution, before ``channel_mult``.
        channel_mult: one multiplier per level, highest resolution first; n levels downsample by 2^(n - 1).
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: the levels that attend after every block, by their side in pixels when the image has
            ``resolution``. Images of another size attend at the same levels.
        resolution: side in pixels from which ``attn_resolutions`` count.
        attention: False for a network without any attention. True: the lowest level attends between its two middle
            blocks, whatever ``attn_resolutions`` says.
        dropout: rate inside the residual blocks, in [0, 1).

    Raises:
        ValueError: a size that is not positive, channels that 32 groups do not divide, or an entry of
            ``attn_resolutions`` that no level has or that ``attention`` forbids.
    """

    base_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    attention: bool
    dropout: float

    def __post_init__(self) -> None:
        if not self.channel_mult or min(self.base_channels, self.num_res_blocks, *self.channel_mult) < 1:
            raise ValueError(
                "an autoencoder needs positive base_channels, num_res_blocks and channel_mult, got "
                f"{self.base_channels}, {self.num_res_blocks} and {self.channel_mult}"
            )
        if any(width % GROUPS for width in self.widths):
            raise ValueError(
                f"an autoencoder normalises in {GROUPS} groups and its levels would have {self.widths} channels: "
                f"choose base_channels as a multiple of {GROUPS}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        self._check_attention()

    def _check_attention(self) -> None:
        if self.attn_resolutions and not self.attention:
            raise ValueError(
                f"attention=False contradicts attn_resolutions={self.attn_resolutions}: leave one of the two out"
            )
        missing = [side for side in self.attn_resolutions if side not in self.sides]
        if missing:
            raise ValueError(
                f"attn_resolutions names {missing} pixels; with resolution={self.resolution} the levels are at "
                f"{self.sides} pixels"
            )

    @property
    def factor(self) -> int:
        """Image sides per latent side."""
        return int(2 ** (len(self.channel_mult) - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(self.base_channels * mult for mult in self.channel_mult)

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels of every level at ``resolution``."""
        return tuple(self.resolution // 2**level for level in range(len(self.channel_mult)))

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether a level attends after each of its blocks."""
        return tuple(side in self.attn_resolutions for side in self.sides)


def group_norm(channels: int) -> nn.GroupNorm:
    """The norm of the whole network: 32 groups, eps 1e-6 where the UNet has 1e-5."""
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x), in place: every caller hands over the fresh output of a norm."""
    return F.silu(x, inplace=True)


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 convolution on the shortcut where channels change.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        dropout: rate before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(self.dropout(swish(self.norm2(h))))
        result: Tensor = h.add_(self.nin_shortcut(x))  # in place: a fresh large map costs 10 times the sum on a CPU
        return result


class Attention(nn.Module):
    """x + softmax(q k^T / sqrt(C)) v over all positions, one head as wide as the map has channels.

    Args:
        channels: C, of the input and of the result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w); no (h w) x (h w) matrix is held where the device has a fused kernel."""
        h = tokens(self.norm(x))
        q, k, v = (pointwise(project, h) for project in (self.q, self.k, self.v))
        h = pointwise(self.proj_out, F.scaled_dot_product_attention(q, k, v))
        return x.add(h.squeeze(1).mT.reshape(x.shape))


def tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 1, h w, C), one head: contiguous, as fused attention asks; a view of a channels-last x."""
    return x.flatten(2).mT.contiguous().unsqueeze(1)


def pointwise(conv: nn.Conv2d, h: Tensor) -> Tensor:
    """A 1x1 convolution on tokens (..., in) -> (..., out)."""
    return F.linear(h, conv.weight.flatten(1), conv.bias)


class Downsample(nn.Module):
    """Halves the sides by a 3x3 convolution of stride 2 whose windows begin at pixels 0, 2, 4, ...

    So it pads on the right and at the bottom only.

    Args:
        channels: of the input and of the result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h / 2, w / 2)."""
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Doubles the sides by repeating every pixel, then convolves.

    Args:
        channels: of the input and of the result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2 h, 2 w), in 4/9 of the multiplications that the definition takes."""
        return F.conv_transpose2d(x, doubling_kernel(self.conv.weight), self.conv.bias, stride=2, padding=1)


def doubling_kernel(weight: Tensor) -> Tensor:
    """Nearest-neighbour doubling and a 3x3 convolution as the kernel of one transposed convolution of stride 2.

    Doubling is itself a transposed convolution, with a 2x2 kernel of ones; the kernel of the two is their convolution.

    Args:
        weight: (out, in, 3, 3), of a convolution padded by one.

    Returns:
        (in, out, 4, 4), for ``conv_transpose2d(..., stride=2, padding=1)``.
    """
    turned = weight.flip(2, 3).transpose(0, 1)
    rows = F.pad(turned, (0, 0, 0, 1)) + F.pad(turned, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


class DownLevel(nn.Module):
    """Residual blocks at one resolution, then half of it unless this is the last level.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every block's result.
        blocks: how many.
        attends: whether attention follows each block.
        dropout: rate inside the blocks.
        last: whether the resolution stays.
    """

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attends: bool, dropout: float, last: bool
    ) -> None:
        super().__init__()
        self.block = res_blocks(in_channels, out_channels, blocks, dropout)
        self.attn = nn.ModuleList(attention(out_channels, attends) for _ in range(blocks))
        self.downsample = nn.Identity() if last else Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h / 2, w / 2)."""
        for block, attn in zip(self.block, self.attn, strict=True):
            x = attn(block(x))
        halved: Tensor = self.downsample(x)
        return halved


class UpLevel(nn.Module):
    """Residual blocks at one resolution, then twice of it unless this is the last level.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every block's result.
        blocks: how many.
        attends: whether attention follows each block.
        dropout: rate inside the blocks.
        last: whether the resolution stays.
    """

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attends: bool, dropout: float, last: bool
    ) -> None:
        super().__init__()
        self.block = res_blocks(in_channels, out_channels, blocks, dropout)
        self.attn = nn.ModuleList(attention(out_channels, attends) for _ in range(blocks))
        self.upsample = nn.Identity() if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, 2 h, 2 w)."""
        for block, attn in zip(self.block, self.attn, strict=True):
            x = attn(block(x))
        doubled: Tensor = self.upsample(x)
        return doubled


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution with attention in between.

    Args:
        channels: of the input and of the result.
        attends: False for a network without any attention.
        dropout: rate inside the blocks.
    """

    def __init__(self, channels: int, attends: bool, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout)
        self.attn_1 = attention(channels, attends)
        self.block_2 = ResBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        h: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return h


def res_blocks(in_channels: int, out_channels: int, count: int, dropout: float) -> nn.ModuleList:
    """``count`` blocks of which the first changes the channels."""
    inputs = [in_channels] + [out_channels] * (count - 1)
    return nn.ModuleList(ResBlock(width, out_channels, dropout) for width in inputs)


def attention(channels: int, attends: bool) -> nn.Module:
    """Attention, or nothing: no parameters and no keys."""
    return Attention(channels) if attends else nn.Identity()


class Encoder(nn.Module):
    """Image to the features from which a first stage makes its latent.

    Args:
        image_channels: channels of the image.
        out_channels: channels of the result.
        pyramid: the levels.
    """

    def __init__(self, image_channels: int, out_channels: int, pyramid: Pyramid) -> None:
        super().__init__()
        widths, blocks, dropout = pyramid.widths, pyramid.num_res_blocks, pyramid.dropout
        self.conv_in = nn.Conv2d(image_channels, pyramid.base_channels, 3, padding=1)
        levels = zip((pyramid.base_channels, *widths[:-1]), widths, pyramid.attends, strict=True)
        self.down = nn.ModuleList(
            DownLevel(given, width, blocks, attends, dropout, last=level == len(widths) - 1)
            for level, (given, width, attends) in enumerate(levels)
        )
        self.mid = Middle(widths[-1], pyramid.attention, dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, image_channels, H, W) -> (B, out_channels, H / factor, W / factor)."""
        h = self.conv_in(fast_layout(image))
        for level in self.down:
            h = level(h)
        features = self.conv_out(swish(self.norm_out(self.mid(h))))
        return laid_out_as(image, features)


class Decoder(nn.Module):
    """Latent features to an image.

    Args:
        in_channels: channels of the features.
        image_channels: channels of the image.
        pyramid: the levels, the same as the encoder's.
    """

    def __init__(self, in_channels: int, image_channels: int, pyramid: Pyramid) -> None:
        super().__init__()
        widths, blocks, dropout = pyramid.widths, pyramid.num_res_blocks + 1, pyramid.dropout
        self.conv_in = nn.Conv2d(in_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], pyramid.attention, dropout)
        levels = zip((*widths[1:], widths[-1]), widths, pyramid.attends, strict=True)
        self.up = nn.ModuleList(
            UpLevel(given, width, blocks, attends, dropout, last=level == 0)
            for level, (given, width, attends) in enumerate(levels)
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], image_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, image_channels, factor h, factor w)."""
        h = self.mid(self.conv_in(fast_layout(features)))
        for level in reversed(self.up):
            h = level(h)
        image = self.conv_out(swish(self.norm_out(h)))
        return laid_out_as(features, image)


def fast_layout(x: Tensor) -> Tensor:
    """Channels-last on a CPU, which convolves it faster; elsewhere as given, because CUDA's GroupNorm undoes it."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def laid_out_as(given: Tensor, result: Tensor) -> Tensor:
    """The result in the memory format in which the caller gave the input."""
    plain = given.is_contiguous() or not given.is_contiguous(memory_format=torch.channels_last)
    return result.contiguous(memory_format=torch.contiguous_format if plain else torch.channels_last)
