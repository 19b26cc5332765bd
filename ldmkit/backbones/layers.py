r"""The layers of the UNet, in both memory formats, with the parameter names of the published checkpoints.

Letters: B batch, C channels, H W pixels of a feature map, N = H W its tokens, L tokens of the context, D their width,
E width of the time embedding, h heads of width d.

Every layer is a function of its arguments alone. What depends on the conditioning or on the time, but not on the
state, is an *argument* here: a :class:`ResBlock` takes its projected embedding, a :class:`SpatialTransformer` its
:class:`Memory` of the context. Whoever calls decides whether these are computed once per step or once per call.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
M = TypeVar("M", bound=nn.Module)


class Memory(NamedTuple):
    """What one attention layer has read from its context.

    ``k`` and ``v`` are (B, h, L, d); ``mask`` is (B, 1, 1, L) bool, True = attend, or None for everywhere.
    """

    k: Tensor
    v: Tensor
    mask: Tensor | None


Answer = Tensor
"""(B, 1, C): what an attention layer gives for a context of one token, whatever it is asked."""

BlockMemory = tuple[Memory | Answer | None, Memory | Answer]
"""What a transformer block takes from the context: for ``attn1`` (None where it attends to itself) and ``attn2``."""


def timestep_embedding(t: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    r""":math:`[\cos(t \omega_i), \sin(t \omega_i)]` with :math:`\omega_i = P^{-i / (w / 2)}`, cosines first.

    Args:
        t: (B,) times, integer or fractional.
        width: w, even.
        max_period: P.

    Returns:
        (B, w) float32.

    Source: Vaswani et al. 2017, section 3.5, in the order of the ADM UNet (the autoencoder family has sines first).
    """
    steps = torch.arange(width // 2, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(steps * (-math.log(max_period) / (width // 2)))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zeroed(module: M) -> M:
    """The module with all its parameters set to zero, so that its branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.Module):
    """Group normalisation over 32 groups, computed in float32 where the input is of lower precision.

    Args:
        channels: C, a multiple of 32.
        eps: 1e-5 in the UNet, 1e-6 in the transformers' entry.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape and dtype."""
        if x.dtype in (torch.float32, torch.float64):
            return F.group_norm(x, GROUPS, self.weight, self.bias, self.eps)
        # The CUDA kernel keeps mean and deviation in the input's dtype, three digits in bfloat16.
        return F.group_norm(x.float(), GROUPS, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


class Downsample(nn.Module):
    """Halve H and W: a stride-2 convolution padded by one on **every** side, or 2 x 2 averages.

    Args:
        channels: C in and out.
        conv: a learned convolution (``op``).
    """

    def __init__(self, channels: int, conv: bool = True) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Double H and W by nearest neighbours, then convolve or not.

    Args:
        channels: C in and out.
        conv: with a learned convolution (``conv``).
    """

    def __init__(self, channels: int, conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class ResBlock(nn.Module):
    r"""Residual block told about the time, :math:`y = S(R(x)) + f_2(f_1(x) \oplus e)`.

    :math:`f_1` is GroupNorm, SiLU, R, Conv; :math:`f_2` is GroupNorm, SiLU, Dropout, Conv (zero at the start); R is a
    change of resolution without parameters or the identity; S is a 1 x 1 convolution where C changes.
    :math:`\oplus` adds e before :math:`f_2`, or with ``scale_shift_norm`` replaces the norm of :math:`f_2` by
    :math:`\mathrm{GN}(h) (1 + e_\text{scale}) + e_\text{shift}`.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        embedding: E.
        scale_shift_norm: see above.
        dropout: rate before the last convolution.
        resample: R, for instance ``Upsample(in_channels, conv=False)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        scale_shift_norm: bool = False,
        dropout: float = 0.0,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.shift_channels = 2 * out_channels if scale_shift_norm else out_channels
        self.resample = nn.Identity() if resample is None else resample
        self.in_layers = nn.Sequential(
            GroupNorm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, self.shift_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def project(self, emb: Tensor) -> Tensor:
        """The embedding (B, E) as this block's shift (B, C, 1, 1), or scale and shift (B, 2 C, 1, 1)."""
        out: Tensor = self.emb_layers(emb)
        return out[:, :, None, None]

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """(B, C_in, H, W) and a projected embedding (B or 1, C or 2 C, 1, 1) to (B, C_out, H', W')."""
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        norm, activation, dropout, conv = self.out_layers
        if self.scale_shift_norm:
            scale, shift = shift.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + shift)
        residual: Tensor = conv(dropout(activation(h)))
        skip: Tensor = self.skip_connection(self.resample(x))
        return skip + residual


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual around it.

    Args:
        channels: C.
        heads: h; it changes no shape, only the output.
        qkv_first: how the 3 C channels of ``qkv`` are laid out. False, as in every published latent diffusion model:
            per head [q, k, v]. True: all q, all k, all v, each by heads.

    Source: Dhariwal and Nichol 2021. Its scaling of q and k by d^(-1/4) each is d^(-1/2) on their product.
    """

    def __init__(self, channels: int, heads: int, qkv_first: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_first = qkv_first
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        b, _, height, width = x.shape
        qkv = _tokens(self.qkv(self.norm(x).flatten(2)))
        if self.qkv_first:
            q, k, v = qkv.view(b, height * width, 3, self.heads, -1).unbind(2)
        else:
            q, k, v = qkv.view(b, height * width, self.heads, 3, -1).unbind(3)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        residual: Tensor = self.proj_out(_join_heads(out).transpose(1, 2))
        return x + residual.view(x.shape)


class Attention(nn.Module):
    """Attention of tokens to themselves or to a context.

    Args:
        width: C of the tokens.
        heads: h.
        context_dim: D of what is attended to; None: the tokens themselves.
        dropout: rate after the output projection.
    """

    def __init__(self, width: int, heads: int, context_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        source = width if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source, width, bias=False)
        self.to_v = nn.Linear(source, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def read(self, context: Tensor, mask: Tensor | None = None) -> Memory | Answer:
        """Keys and values of a context (B, L, D) with a mask (B, 1, 1, L); of a single token, the answer itself."""
        # One token's weight is exp(s) / exp(s) = 1. With gradients the long way round, so that to_q gets its zeros.
        if context.shape[1] == 1 and mask is None and not torch.is_grad_enabled():
            answer: Tensor = self.to_out(self.to_v(context))
            return answer
        return Memory(self._by_heads(self.to_k(context)), self._by_heads(self.to_v(context)), mask)

    def forward(self, x: Tensor, memory: Memory | Answer | None = None) -> Tensor:
        """Tokens (B, N, C) to (B, N, C), or to (B, 1, C) where the memory is an answer; None: attend to x."""
        memory = self.read(x) if memory is None else memory
        if isinstance(memory, Tensor):
            return memory
        out = F.scaled_dot_product_attention(self._by_heads(self.to_q(x)), memory.k, memory.v, attn_mask=memory.mask)
        projected: Tensor = self.to_out(_join_heads(out))
        return projected

    def _by_heads(self, tokens: Tensor) -> Tensor:
        b, n, c = tokens.shape
        return tokens.view(b, n, self.heads, c // self.heads).transpose(1, 2)


class GEGLU(nn.Module):
    """``a * gelu(b)`` with [a, b] one linear map of the input: the value half first, then the gate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, hidden)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """GEGLU to four times the width, dropout, and back."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(dropout), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same shape."""
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward, each with a residual.

    Args:
        width: C.
        heads: h.
        context_dim: D.
        self_attention: False turns ``attn1`` into a second cross-attention, as in the x4 upscaler.
        dropout: rate inside the three branches.
    """

    def __init__(
        self, width: int, heads: int, context_dim: int, self_attention: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.attn1 = Attention(width, heads, None if self_attention else context_dim, dropout)
        self.attn2 = Attention(width, heads, context_dim, dropout)
        self.ff = FeedForward(width, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def read(self, context: Tensor, mask: Tensor | None) -> BlockMemory:
        """What both attention layers take from a context."""
        return None if self.self_attention else self.attn1.read(context, mask), self.attn2.read(context, mask)

    def forward(self, x: Tensor, memory: BlockMemory) -> Tensor:
        """(B, N, C) to the same shape."""
        first, second = memory
        x = x + self.attn1(self.norm1(x), first)
        x = x + self.attn2(self.norm2(x), second)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, with a residual around them all.

    Args:
        channels: C.
        heads: h.
        context_dim: D; one context for every block.
        depth: number of blocks.
        linear: project in and out by linear maps of the tokens (SD 2), not by 1 x 1 convolutions. The parameters
            differ in shape, the function does not.
        self_attention: see :class:`TransformerBlock`.
        dropout: see :class:`TransformerBlock`.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context_dim: int,
        depth: int = 1,
        linear: bool = False,
        self_attention: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim, self_attention, dropout) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1))

    def read(self, context: Tensor, mask: Tensor | None) -> tuple[BlockMemory, ...]:
        """What each block takes from a context (B, L, D) with a mask (B, 1, 1, L)."""
        return tuple(block.read(context, mask) for block in cast(list[TransformerBlock], self.transformer_blocks))

    def forward(self, x: Tensor, memories: tuple[BlockMemory, ...]) -> Tensor:
        """(B, C, H, W) and one memory per block to (B, C, H, W)."""
        h = self.norm(x)
        h = self.proj_in(_tokens(h.flatten(2))) if self.linear else _tokens(self.proj_in(h).flatten(2))
        for block, memory in zip(self.transformer_blocks, memories, strict=True):
            h = block(h, memory)
        h = self.proj_out(h) if self.linear else h
        # (B, N, C) back to (B, C, H, W): a view, in channels-last order.
        h = h.transpose(1, 2).view(x.shape)
        out: Tensor = x + (h if self.linear else self.proj_out(h))
        return out


def _tokens(x: Tensor) -> Tensor:
    """(B, C, N) to contiguous (B, N, C); free where x is in channels-last order."""
    return x.transpose(1, 2).contiguous()


def _join_heads(x: Tensor) -> Tensor:
    """(B, h, N, d) to (B, N, h d)."""
    return x.transpose(1, 2).flatten(2)
