r"""A diffusion transformer built from timm's patch embedding, attention and MLP.

The state is cut into patches, each a token; the time, a label and a vector shift, scale and gate every block (adaLN);
a context stands in front of the patches and is attended to like them (in-context conditioning):

.. math::

    c &= \mathrm{MLP}(\mathrm{emb}(t)) + \mathrm{emb}(\mathrm{label}) + \mathrm{MLP}(\mathrm{vector}), \qquad
    h_0 = [W \, \mathrm{context}, \; \mathrm{patches} + \mathrm{positions}] \\
    h &\leftarrow h + g_1(c) \; \mathrm{attention}(\mathrm{LN}(h) (1 + s_1(c)) + b_1(c)) \\
    h &\leftarrow h + g_2(c) \; \mathrm{mlp}(\mathrm{LN}(h) (1 + s_2(c)) + b_2(c))

The gates and the last layer start at zero (adaLN-zero), so a fresh network predicts zero. Positions are computed from
the grid, so every size that is a multiple of the patch works.

This module knows neither processes nor samplers: t is a number that is embedded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from timm.layers import Attention, Mlp, PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

FREQUENCIES = 128
OPTIONS = {"context": "context_dim", "vector": "vector_dim", "label": "num_classes"}


class DiT(nn.Module):
    """The backbone of diffusion transformers.

    Args:
        channels: channels of the state and of the prediction.
        width: of the tokens; a multiple of 4 and of ``heads``.
        depth: blocks.
        heads: attention heads.
        patch: side of a patch, in cells of the state.
        concat_channels: channels of ``concat``, which x carries after the state's.
        context_dim: width of the context; None: it reads none.
        vector_dim: width of the vector; None: it reads none.
        num_classes: number of classes of ``label``; None: it reads none.
        mlp_ratio: inner width of the MLPs, in units of ``width``.

    Attributes:
        accepts: slot -> width, channels or classes, for each slot the network reads; it needs them all.
        multiple: H and W of the state must be multiples of it.

    Raises:
        ValueError: sizes below 1, or a width that does not divide.

    Source: Peebles and Xie 2023 (arXiv 2212.09748), whose names of parameters these are; its published weights predict
    a variance beside the noise, which this network does not.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int = 2,
        concat_channels: int = 0,
        context_dim: int | None = None,
        vector_dim: int | None = None,
        num_classes: int | None = None,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if min(channels, width, depth, heads, patch) < 1 or width % 4 or width % heads:
            raise ValueError(
                "backbone 'dit' needs sizes of at least 1 and a width that is a multiple of 4 and of heads; got "
                f"{channels=}, {width=}, {depth=}, {heads=}, {patch=}"
            )
        self.channels = channels
        self.width = width
        self.depth = depth
        self.heads = heads
        self.patch = patch
        self.concat_channels = concat_channels
        self.context_dim = context_dim
        self.vector_dim = vector_dim
        self.num_classes = num_classes
        self.mlp_ratio = mlp_ratio
        sizes = {"context": context_dim, "vector": vector_dim, "label": num_classes, "concat": concat_channels}
        self.accepts: dict[str, int] = {slot: size for slot, size in sizes.items() if size}
        self.multiple = patch

        self.x_embedder = PatchEmbed(None, patch, channels + concat_channels, width)
        self.t_embedder = Embedder(2 * FREQUENCIES, width)
        self.y_embedder = None if num_classes is None else Labels(num_classes, width)
        self.vector_embedder = None if vector_dim is None else Embedder(vector_dim, width)
        self.context_embedder = None if context_dim is None else nn.Linear(context_dim, width)
        self.blocks = nn.ModuleList([Block(width, heads, int(width * mlp_ratio)) for _ in range(depth)])
        self.final_layer = FinalLayer(width, patch * patch * channels)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        vector: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Predict from the state x at time t.

        Args:
            x: (B, channels + concat_channels, H, W); H and W multiples of ``multiple``.
            t: (B,) times, integer or fractional.
            context: (B, L, context_dim).
            context_mask: (B, L) bool, True = attend; None: everywhere.
            vector: (B, vector_dim).
            label: (B,) integer classes.

        Returns:
            (B, channels, H, W).

        Raises:
            ValueError: a shape does not fit, a slot that the network reads is missing, or one that it does not read
                is given.
        """
        self._check(x, t, {"context": context, "vector": vector, "label": label}, context_mask)
        rows, columns = (side // self.patch for side in x.shape[2:])
        h = self.x_embedder(x)
        h = h + positions(rows, columns, self.width, h.device).to(h.dtype)
        mask = None
        if self.context_embedder is not None and context is not None:
            h = torch.cat([self.context_embedder(context.to(h.dtype)), h], dim=1)
            mask = None if context_mask is None else attention_mask(context_mask, rows * columns)
        c = self._embedded(t, vector, label, h.dtype)
        for block in self.blocks:
            h = block(h, c, mask)
        return self._image(self.final_layer(h[:, -rows * columns :], c), rows, columns)

    def _embedded(self, t: Tensor, vector: Tensor | None, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What shifts, scales and gates the blocks: (B, width)."""
        c: Tensor = self.t_embedder(frequencies(t).to(dtype))
        if self.y_embedder is not None:
            c = c + self.y_embedder(label)
        if self.vector_embedder is not None and vector is not None:
            c = c + self.vector_embedder(vector.to(dtype))
        return c

    def _image(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Patches (B, N, patch * patch * channels) side by side: (B, channels, H, W)."""
        cells = patches.view(-1, rows, columns, self.patch, self.patch, self.channels)
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _check(self, x: Tensor, t: Tensor, slots: Mapping[str, Tensor | None], mask: Tensor | None) -> None:
        expected = self.channels + self.concat_channels
        if x.ndim != 4 or x.shape[1] != expected or any(side % self.patch for side in x.shape[2:]):
            raise ValueError(
                f"backbone 'dit' got a state of shape {tuple(x.shape)} and expects (B, {expected}, H, W), "
                f"{self.channels} channels of the state and {self.concat_channels} of concat, with H and W multiples "
                f"of {self.patch}"
            )
        if not x.is_floating_point():
            raise ValueError(f"backbone 'dit' expects a state in floating point, got {x.dtype}")
        for slot, value in {"t": t, **slots}.items():
            if slot != "t" and (value is not None) != (slot in self.accepts):
                told = "needs" if value is None else "does not read"
                raise ValueError(
                    f"backbone 'dit' {told} {slot} ({OPTIONS[slot]}={self.accepts.get(slot)}): change the conditioner, "
                    f"or build the dit with another {OPTIONS[slot]}"
                )
            if value is not None:
                self._check_shape(slot, value, x.shape[0])
        context = slots["context"]
        if mask is not None and (context is None or mask.dtype != torch.bool or mask.shape != context.shape[:2]):
            raise ValueError(
                f"backbone 'dit' expects context_mask as (B, L) bool for a context (B, L, {self.context_dim}); got "
                f"{tuple(mask.shape)} {mask.dtype}"
            )

    def _check_shape(self, slot: str, value: Tensor, batch: int) -> None:
        shapes = {"t": (batch,), "label": (batch,), "vector": (batch, self.vector_dim)}
        shapes["context"] = (batch, *value.shape[1:2], self.context_dim)
        if tuple(value.shape) != shapes[slot] or (slot == "label" and value.is_floating_point()):
            raise ValueError(
                f"backbone 'dit' expects {slot} of shape {shapes[slot]}{', integers' * (slot == 'label')}; got "
                f"{tuple(value.shape)} {value.dtype}"
            )


class Embedder(nn.Module):
    """Features (B, size) to what a block is told, (B, width), by an MLP."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, size) to (B, width)."""
        told: Tensor = self.mlp(features)
        return told


class Labels(nn.Module):
    """Classes (B,) to what a block is told, (B, width), by a table."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes, width)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, label: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        told: Tensor = self.embedding_table(label)
        return told


class Block(nn.Module):
    """timm's attention and MLP, shifted, scaled and gated by what the block is told."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.mlp = Mlp(width, inner, act_layer=partial(nn.GELU, approximate="tanh"))
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, h: Tensor, c: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, width) told (B, width), with a mask (B, 1, 1, N) or none, to (B, N, width)."""
        b1, s1, g1, b2, s2, g2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        h = h + g1 * self.attn(modulated(h, b1, s1), attn_mask=mask)
        h = h + g2 * self.mlp(modulated(h, b2, s2))
        return h


class FinalLayer(nn.Module):
    """Tokens to the pixels of their patches."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(width, out))
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """(B, N, width) told (B, width) to (B, N, out)."""
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        out: Tensor = self.linear(modulated(h, shift, scale))
        return out


def modulation(width: int, count: int) -> nn.Sequential:
    """What a block is told to ``count`` shifts, scales and gates, all zero at first."""
    return nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, count * width)))


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``LN(h) (1 + scale) + shift``."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The same layer, with zeros for weights."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def frequencies(t: Tensor) -> Tensor:
    """Times (B,) to [cos, sin] at ``FREQUENCIES`` geometric frequencies from 1 to about 1e-4: (B, 256) float32."""
    exponents = torch.arange(FREQUENCIES, dtype=torch.float32, device=t.device) / FREQUENCIES
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of each patch's column, then of its row: (rows * columns, width) float32."""
    exponents = torch.arange(width // 4, dtype=torch.float32, device=device) / (width // 4)
    rates = torch.exp(-math.log(10000) * exponents)
    row, column = (torch.arange(count, dtype=torch.float32, device=device) for count in (rows, columns))
    angles = column.repeat(rows)[:, None] * rates, row.repeat_interleave(columns)[:, None] * rates
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)


def attention_mask(context_mask: Tensor, patches: int) -> Tensor:
    """(B, L) of the context as (B, 1, 1, L + patches): patches are always seen."""
    return F.pad(context_mask, (0, patches), value=True)[:, None, None]
