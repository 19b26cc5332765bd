r"""The encoder and decoder of an autoencoder, window by window, equal to the whole.

A window alone cannot know the norm of the whole map. So each layer runs over all windows before the next one begins,

.. math:: h = \mathrm{conv}(\mathrm{swish}((x - \mu) / \sigma)), \qquad
          \mu, \sigma \text{ from a first pass over all of } x

and a convolution's window takes one more row and column of its neighbours on each side. Maps between layers are whole;
they live where ``store`` says, so that the device that computes holds one window of one layer. Attention is at the
lowest resolutions and takes the whole map at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmkit.first_stages.autoencoder import (
    Attention,
    Decoder,
    DownLevel,
    Downsample,
    Encoder,
    Middle,
    ResBlock,
    UpLevel,
    Upsample,
)
from ldmkit.first_stages.tiled import Stage, check_stage
from ldmkit.tiling import Window

Statistics = tuple[Tensor, Tensor]


class TiledExact(nn.Module):
    """A KL or VQ first stage computed window by window, equal to the whole up to rounding.

    Every layer passes over the image before the next: slower than ``tiled`` where maps travel between ``store`` and
    the device that computes, and free of any seam or shift of colour.

    Args:
        of: a KL or VQ first stage.
        tile: the side of a window in pixels; layers of lower resolution use as many cells.
        store: the device that holds whole maps, such as ``cpu``; None: where the input is.

    Raises:
        TypeError: ``of`` has no encoder and decoder of this library.
        ValueError: a tile below 1 pixel.
    """

    def __init__(self, of: nn.Module, tile: int = 512, store: str | None = None) -> None:
        super().__init__()
        stage = check_stage("tiled-exact", of)
        parts = getattr(of, "encoder", None), getattr(of, "decoder", None)
        if not isinstance(parts[0], Encoder) or not isinstance(parts[1], Decoder):
            raise TypeError(
                f"first stage 'tiled-exact' knows the layers of 'kl' and 'vq', got {type(of).__name__}: use 'tiled'"
            )
        if tile < 1:
            raise ValueError(f"first stage 'tiled-exact' needs a tile of at least 1 px, got {tile}")
        self.of = of
        self.tile = tile
        self.store = store
        self.factor = stage.factor
        self.multiple = stage.factor
        self.channels = stage.channels
        self.image_channels = stage.image_channels

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] to scaled latents (B, c, H / factor, W / factor); see the wrapped stage."""
        return self._by_windows().encode(image, noise)

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, c, h, w) to images (B, C, factor h, factor w); see the wrapped stage."""
        return self._by_windows().decode(z)

    def _by_windows(self) -> Stage:
        """The stage itself, with its two networks run by windows; nothing of it is copied or changed."""
        view = copy.copy(self.of)
        walk = Walk(self.tile, self.store)
        networks = {"encoder": _Walked(view.encoder, walk), "decoder": _Walked(view.decoder, walk)}
        view._modules = {**view._modules, **networks}
        return cast(Stage, view)


class _Walked(nn.Module):
    """A network of which each layer runs by windows."""

    def __init__(self, network: nn.Module | Tensor, walk: Walk) -> None:
        super().__init__()
        self.network = network
        self.walk = walk

    def forward(self, x: Tensor) -> Tensor:
        device = x.device
        x = x if self.walk.store is None else x.to(self.walk.store)
        if isinstance(self.network, Encoder):
            return self._encode(self.network, x, device).to(device)
        return self._decode(cast(Decoder, self.network), x, device).to(device)

    def _encode(self, network: Encoder, x: Tensor, device: torch.device) -> Tensor:
        h = self.walk.conv(network.conv_in, x, device)
        for level in network.down:
            h = self.walk.level(cast(DownLevel, level), h, device)
        h = self.walk.middle(network.mid, h, device)
        return self.walk.norm_conv(network.norm_out, network.conv_out, h, device)

    def _decode(self, network: Decoder, x: Tensor, device: torch.device) -> Tensor:
        h = self.walk.middle(network.mid, self.walk.conv(network.conv_in, x, device), device)
        for level in reversed(network.up):
            h = self.walk.level(cast(UpLevel, level), h, device)
        return self.walk.norm_conv(network.norm_out, network.conv_out, h, device)


class Walk:
    """Layers over whole maps, window by window.

    Args:
        tile: the side of a window, in cells of the map at hand.
        store: where whole maps live; None: where they come from.
    """

    def __init__(self, tile: int, store: str | None) -> None:
        self.tile = tile
        self.store = store

    def conv(self, conv: nn.Module, x: Tensor, device: torch.device) -> Tensor:
        """A 3x3 convolution padded by one, or a 1x1 convolution."""
        return self._map(cast(nn.Conv2d, conv), x, device, lambda part: part)

    def norm_conv(self, norm: nn.GroupNorm, conv: nn.Module, x: Tensor, device: torch.device) -> Tensor:
        """``conv(swish(norm(x)))`` with the norm of the whole map."""
        statistics = self._statistics(norm, x, device)
        return self._map(
            cast(nn.Conv2d, conv), x, device, lambda part: F.silu(_normalised(norm, part, statistics), inplace=True)
        )

    def res_block(self, block: ResBlock, x: Tensor, device: torch.device) -> Tensor:
        """A residual block, dropout aside: these stages run in eval mode."""
        h = self.norm_conv(block.norm1, block.conv1, x, device)
        h = self.norm_conv(block.norm2, block.conv2, h, device)
        shortcut = block.nin_shortcut
        for window in self._windows(h):
            part = window.of(x).to(device)
            window.of(h).add_((part if isinstance(shortcut, nn.Identity) else shortcut(part)).to(h.device))
        return h

    def middle(self, middle: Middle, x: Tensor, device: torch.device) -> Tensor:
        """Two residual blocks and the attention between them."""
        h = self._attention(middle.attn_1, self.res_block(middle.block_1, x, device), device)
        return self.res_block(middle.block_2, h, device)

    def level(self, level: DownLevel | UpLevel, x: Tensor, device: torch.device) -> Tensor:
        """The blocks of one resolution, and the change to the next."""
        for block, attention in zip(level.block, level.attn, strict=True):
            x = self._attention(attention, self.res_block(cast(ResBlock, block), x, device), device)
        change = level.downsample if isinstance(level, DownLevel) else level.upsample
        if isinstance(change, Downsample):
            return self._halve(change, x, device)
        return self._double(change, x, device) if isinstance(change, Upsample) else x

    def _attention(self, attention: nn.Module, x: Tensor, device: torch.device) -> Tensor:
        return attention(x.to(device)).to(x.device) if isinstance(attention, Attention) else x

    def _windows(self, x: Tensor) -> Sequence[Window]:
        """Windows that share no cell: what is summed over the map or added to it counts every cell once."""
        H, W = x.shape[-2:]
        tops, lefts = range(0, H, self.tile), range(0, W, self.tile)
        return [Window(t, left, min(self.tile, H - t), min(self.tile, W - left)) for t in tops for left in lefts]

    def _map(self, conv: nn.Conv2d, x: Tensor, device: torch.device, before: Callable[[Tensor], Tensor]) -> Tensor:
        """A convolution that keeps the size, over windows with the neighbours that it reads."""
        halo = conv.kernel_size[0] // 2
        out = x.new_empty(x.shape[0], conv.out_channels, *x.shape[-2:])
        for window in self._windows(x):
            part, missing = _with_neighbours(x, window, halo)
            part = F.pad(before(part.to(device)), missing)
            window.of(out).copy_(F.conv2d(part, conv.weight, conv.bias))
        return out

    def _halve(self, layer: Downsample, x: Tensor, device: torch.device) -> Tensor:
        H, W = x.shape[-2] // 2, x.shape[-1] // 2
        out = x.new_empty(x.shape[0], layer.conv.out_channels, H, W)
        for window in self._windows(out):
            top, left = 2 * window.top, 2 * window.left
            part = x[..., top : top + 2 * window.height + 1, left : left + 2 * window.width + 1].to(device)
            short = 2 * window.width + 1 - part.shape[-1], 2 * window.height + 1 - part.shape[-2]
            window.of(out).copy_(layer.conv(F.pad(part, (0, short[0], 0, short[1]))))
        return out

    def _double(self, layer: Upsample, x: Tensor, device: torch.device) -> Tensor:
        out = x.new_empty(x.shape[0], layer.conv.out_channels, 2 * x.shape[-2], 2 * x.shape[-1])
        for window in self._windows(x):
            part, missing = _with_neighbours(x, window, 1)
            doubled = layer(F.pad(part.to(device), missing))
            inside = Window(2, 2, 2 * window.height, 2 * window.width)
            window.times(2).of(out).copy_(inside.of(doubled))
        return out

    def _statistics(self, norm: nn.GroupNorm, x: Tensor, device: torch.device) -> Statistics:
        """Mean and 1 / standard deviation of every group of the whole map, (B, groups, 1): a first pass."""
        precise = torch.promote_types(x.dtype, torch.float32)
        count = 0
        mean = torch.zeros(x.shape[0], norm.num_groups, dtype=precise, device=device)
        squares = torch.zeros_like(mean)
        for window in self._windows(x):
            part = window.of(x).to(device, precise).reshape(x.shape[0], norm.num_groups, -1)
            n = part.shape[-1]
            here = part.mean(dim=-1)
            variance = (part - here[..., None]).square().mean(dim=-1)  # faster than var_mean on a CPU
            delta = here - mean
            count += n
            mean = mean + delta * (n / count)
            squares = squares + variance * n + delta**2 * (n * (count - n) / count)
        spread = (squares / count + norm.eps).rsqrt()
        return mean[..., None], spread[..., None]


def _with_neighbours(x: Tensor, window: Window, halo: int) -> tuple[Tensor, tuple[int, int, int, int]]:
    """(the window with what is around it, the padding for what lies outside the map: left, right, top, bottom)."""
    H, W = x.shape[-2:]
    top, left = window.top - halo, window.left - halo
    bottom, right = window.top + window.height + halo, window.left + window.width + halo
    part = x[..., max(top, 0) : min(bottom, H), max(left, 0) : min(right, W)]
    return part, (max(-left, 0), max(right - W, 0), max(-top, 0), max(bottom - H, 0))


def _normalised(norm: nn.GroupNorm, part: Tensor, statistics: Statistics) -> Tensor:
    """The norm of a window, ``factor * x + shift`` by channel in the precision of the statistics, then rounded."""
    mean, spread = (value.expand(-1, -1, norm.num_channels // norm.num_groups).flatten(1) for value in statistics)
    factor = spread * norm.weight
    shift = norm.bias - mean * factor
    return torch.addcmul(shift[..., None, None], part.to(mean.dtype), factor[..., None, None]).to(part.dtype)
