r"""The UNet of the published latent diffusion models, with every switch their configurations use.

A stack of *stages*: input stages that halve the resolution level by level, a middle stage, output stages that double
it again, each output stage reading ``[h, skip]`` with one skip per input stage. A stage is a list of layers: a
:class:`~ldmkit.backbones.layers.ResBlock`, an attention layer where the level's downsampling factor is listed, a
change of resolution. Parameter names are the published ones (``input_blocks.1.0.in_layers.0.weight``).

There is one body, :meth:`UNet.forward` on a :class:`Told`, what the layers are told beside the state. From a time and
a conditioning it is made once per call of ``forward``; :meth:`UNet.bind` makes it once per sampling run, for all times.

This module knows neither processes nor samplers: t is a number that is embedded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from ldmkit.backbones.layers import (
    GROUPS,
    AttentionBlock,
    BlockMemory,
    Downsample,
    GroupNorm,
    ResBlock,
    SpatialTransformer,
    Upsample,
    timestep_embedding,
    zeroed,
)
from ldmkit.conditioning import Conditioning

TABLE_BYTES = 2**28
"""The largest table of projected embeddings that one ``bind`` keeps: 256 MiB, some 3,000 rows of Stable Diffusion."""

L = TypeVar("L", bound=nn.Module)


class Told(NamedTuple):
    """What the layers are told beside the state, in the order in which they run.

    ``shifts`` holds the projected embeddings of all residual blocks side by side, (B or 1, sum of widths, 1, 1): one
    tensor, because it is the only input beside x that changes from step to step of a captured graph. ``memories``
    holds what each transformer has read from the context.
    """

    shifts: Tensor
    memories: tuple[tuple[BlockMemory, ...], ...]


class UNet(nn.Module):
    """The UNet of latent diffusion and Stable Diffusion.

    Args:
        channels: channels of the state and of the prediction.
        model_channels: width of the first level; a multiple of 32.
        channel_mult: width of each level, in units of ``model_channels``.
        num_res_blocks: residual blocks per level (the output half has one more).
        attention_resolutions: the **downsampling factors** (1, 2, 4, ...) at which levels have attention; factors
            that the network does not reach are ignored. The middle always has it.
        concat_channels: channels of ``concat``, which x carries after the state's.
        num_heads: attention heads at every level. Exactly one of this and ``head_channels``.
        head_channels: width of a head, so that a level of C channels has ``C // head_channels`` heads.
        context_dim: width of the context; attention layers are then spatial transformers. None: plain self-attention.
        transformer_depth: transformer blocks per attention layer, one number or one per level (the middle: the last).
        linear_projections: the transformers project by linear maps (SD 2) instead of 1 x 1 convolutions.
        disable_self_attention: per level, True where ``attn1`` attends to the context as well; () for nowhere.
        scale_shift_norm: residual blocks scale and shift by the embedding instead of adding it.
        resblock_updown: change resolution in residual blocks.
        conv_resample: change resolution with learned convolutions; False: averages and nearest neighbours alone.
        num_classes: number of classes of ``label``, whose embedding is added to that of the time.
        vector_dim: width of ``vector``, whose projection is added to the embedding of the time.
        dropout: rate in residual blocks and transformers.
        qkv_first: see :class:`~ldmkit.backbones.layers.AttentionBlock`.
        checkpoint: recompute activations in the backward pass instead of keeping them.

    Attributes:
        accepts: slot -> width, channels or classes, for each slot the network reads; it needs them all.
        multiple: H and W of the state must be multiples of it.

    Raises:
        ValueError: options that contradict each other, or that would do nothing.

    Source: Rombach et al. 2022 (LDM), after Dhariwal and Nichol 2021 (ADM). Head counts change no shape: models whose
    published configuration says ``num_head_channels: 32`` beside a transformer were trained with one head.
    """

    def __init__(
        self,
        channels: int,
        *,
        model_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        concat_channels: int = 0,
        num_heads: int | None = None,
        head_channels: int | None = None,
        context_dim: int | None = None,
        transformer_depth: int | Sequence[int] = 1,
        linear_projections: bool = False,
        disable_self_attention: Sequence[bool] = (),
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        conv_resample: bool = True,
        num_classes: int | None = None,
        vector_dim: int | None = None,
        dropout: float = 0.0,
        qkv_first: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.model_channels = model_channels
        self.channel_mult = tuple(channel_mult)
        self.num_res_blocks = num_res_blocks
        self.attention_resolutions = tuple(attention_resolutions)
        self.concat_channels = concat_channels
        self.num_heads = num_heads
        self.head_channels = head_channels
        self.context_dim = context_dim
        self.transformer_depth = transformer_depth if isinstance(transformer_depth, int) else tuple(transformer_depth)
        self.linear_projections = linear_projections
        self.disable_self_attention = tuple(disable_self_attention)
        self.scale_shift_norm = scale_shift_norm
        self.resblock_updown = resblock_updown
        self.conv_resample = conv_resample
        self.num_classes = num_classes
        self.vector_dim = vector_dim
        self.dropout = dropout
        self.qkv_first = qkv_first
        self.checkpoint = checkpoint
        self._check_options()

        sizes = {"context": context_dim, "vector": vector_dim, "label": num_classes, "concat": concat_channels}
        self.accepts: dict[str, int] = {slot: size for slot, size in sizes.items() if size}
        self.multiple = 2 ** (len(self.channel_mult) - 1)
        self._build()

    def _check_options(self) -> None:
        levels = len(self.channel_mult)
        depths, disabled = self.transformer_depth, self.disable_self_attention
        widths = [self.model_channels, *(self.model_channels * mult for mult in self.channel_mult)]
        transformers = self.context_dim is not None
        wrong = {
            "give exactly one of num_heads and head_channels": (self.num_heads is None) == (self.head_channels is None),
            "give at most one of num_classes and vector_dim: both are the published label_emb": (
                self.num_classes is not None and self.vector_dim is not None
            ),
            "channel_mult needs one entry per level, at least one": levels == 0,
            "channels, num_res_blocks and every transformer_depth must be at least 1": (
                min(self.channels, self.num_res_blocks, *([depths] if isinstance(depths, int) else depths)) < 1
            ),
            "concat_channels must be at least 0, and context_dim, vector_dim and num_classes at least 1 where given": (
                self.concat_channels < 0
                or any(size is not None and size < 1 for size in (self.context_dim, self.vector_dim, self.num_classes))
            ),
            f"the levels' widths {widths} must be multiples of {GROUPS}, the groups of the norms": (
                any(width % GROUPS for width in widths)
            ),
            f"transformer_depth {depths} needs one entry for each of the {levels} levels": (
                not isinstance(depths, int) and len(depths) != levels
            ),
            f"disable_self_attention {disabled} needs one entry for each of the {levels} levels": (
                len(disabled) not in (0, levels)
            ),
            "transformer_depth, linear_projections and disable_self_attention are options of transformers: "
            "they need a context_dim": not transformers and (depths != 1 or self.linear_projections or any(disabled)),
            "qkv_first is an option of plain attention: it does nothing with a context_dim": (
                transformers and self.qkv_first
            ),
            "conv_resample=False does nothing with resblock_updown": self.resblock_updown and not self.conv_resample,
        }
        for message, applies in wrong.items():
            if applies:
                raise ValueError(f"backbone 'unet': {message}")

    def _build(self) -> None:
        """Lay out the stages; registration order is the order in which they run."""
        width, embedding = self.model_channels, self._embedding
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if self.num_classes is not None:
            self.label_emb: nn.Module = nn.Embedding(self.num_classes, embedding)
        if self.vector_dim is not None:
            layers = nn.Linear(self.vector_dim, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
            self.label_emb = nn.Sequential(nn.Sequential(*layers))

        first = nn.Conv2d(self.channels + self.concat_channels, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        skips = [width]
        last = len(self.channel_mult) - 1
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                stage = self._stage(width, mult * self.model_channels, level)
                width = mult * self.model_channels
                self.input_blocks.append(stage)
                skips.append(width)
            if level < last:
                self.input_blocks.append(nn.ModuleList([self._halve(width)]))
                skips.append(width)

        attention = self._attention(width, last, in_middle=True)
        self.middle_block = nn.ModuleList([self._res_block(width, width), attention, self._res_block(width, width)])

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for _ in range(self.num_res_blocks + 1):
                stage = self._stage(width + skips.pop(), mult * self.model_channels, level)
                width = mult * self.model_channels
                self.output_blocks.append(stage)
            if level > 0:
                stage.append(self._double(width))

        self._shift_widths = [block.shift_channels for block in self._layers(ResBlock)]
        last_conv = nn.Conv2d(width, self.channels, 3, padding=1)
        self.out = nn.Sequential(GroupNorm(width), nn.SiLU(), zeroed(last_conv))

    @property
    def _embedding(self) -> int:
        return 4 * self.model_channels

    def _stage(self, in_width: int, width: int, level: int) -> nn.ModuleList:
        attends = 2**level in self.attention_resolutions
        attention = [self._attention(width, level)] if attends else []
        return nn.ModuleList([self._res_block(in_width, width), *attention])

    def _res_block(self, in_width: int, width: int, resample: nn.Module | None = None) -> ResBlock:
        return ResBlock(in_width, width, self._embedding, self.scale_shift_norm, self.dropout, resample)

    def _attention(self, width: int, level: int, in_middle: bool = False) -> nn.Module:
        heads = width // self.head_channels if self.head_channels else self.num_heads
        if not heads or width % heads or (self.head_channels and width % self.head_channels):
            asked = f"num_heads={self.num_heads}, head_channels={self.head_channels}"
            raise ValueError(f"backbone 'unet': {asked} does not divide a level of {width} channels into heads")
        if self.context_dim is None:
            return AttentionBlock(width, heads, self.qkv_first)
        depths, disabled = self.transformer_depth, self.disable_self_attention
        return SpatialTransformer(
            width,
            heads,
            self.context_dim,
            depth=depths if isinstance(depths, int) else depths[level],
            linear=self.linear_projections,
            self_attention=in_middle or not (disabled and disabled[level]),
            dropout=self.dropout,
        )

    def _halve(self, width: int) -> nn.Module:
        if self.resblock_updown:
            return self._res_block(width, width, Downsample(width, conv=False))
        return Downsample(width, conv=self.conv_resample)

    def _double(self, width: int) -> nn.Module:
        if self.resblock_updown:
            return self._res_block(width, width, Upsample(width, conv=False))
        return Upsample(width, conv=self.conv_resample)

    def forward(
        self,
        x: Tensor,
        t: Tensor | Told,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        vector: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Predict from the state x at time t.

        Args:
            x: (B, channels + concat_channels, H, W); H and W multiples of ``multiple``.
            t: (B,) times, integer or fractional; or what :meth:`bind` has made of a time and all that follows.
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
        self._check_state(x)
        if isinstance(t, Tensor):
            self._check_slots(context, context_mask, vector, label)
            _check_batch(x, t=t, context=context, vector=vector, label=label)
            extra = self.embed_extra(vector, label)
            emb = self.embed_time(t)
            told = Told(self.project(emb if extra is None else emb + extra), self.read(context, context_mask))
        else:
            told = t
            if not (context is context_mask is vector is label is None):
                raise ValueError("backbone 'unet' is already told the conditioning by t: give it to bind alone")
        return self._predict(x, told)

    def _predict(self, x: Tensor, told: Told) -> Tensor:
        shifts, memories = iter(torch.split(told.shifts, self._shift_widths, dim=1)), iter(told.memories)
        h = x
        skips = []
        for stage in self.input_blocks:
            h = self._run(stage, h, shifts, memories)
            skips.append(h)
        h = self._run(self.middle_block, h, shifts, memories)
        for stage in self.output_blocks:
            h = self._run(stage, torch.cat([h, skips.pop()], dim=1), shifts, memories)
        out: Tensor = self.out(h)
        return out

    def _run(
        self, stage: nn.Module, h: Tensor, shifts: Iterator[Tensor], memories: Iterator[tuple[BlockMemory, ...]]
    ) -> Tensor:
        recomputes = self.checkpoint and torch.is_grad_enabled()
        for layer in cast(nn.ModuleList, stage):
            inputs: tuple[object, ...] = (h,)
            if isinstance(layer, ResBlock):
                inputs = (h, next(shifts))
            elif isinstance(layer, SpatialTransformer):
                inputs = (h, next(memories))
            if recomputes and isinstance(layer, ResBlock | SpatialTransformer | AttentionBlock):
                h = recompute(layer, *inputs, use_reentrant=False)
            else:
                h = layer(*inputs)
        return h

    def bind(self, cond: Conditioning, times: Sequence[float]) -> BoundUNet:
        """Compute once what a sampling run needs at every step.

        That is, under the ambient grad mode: keys and values of the context for every cross-attention, and the
        projected embedding of every time for every residual block; where these exceed ``TABLE_BYTES`` they are computed
        step by step. Nothing is stored on the module. To compile the steps compile the module in place,
        ``unet.compile()``, which serves every binding and every time with one graph.

        Args:
            cond: the conditioning of the batch. ``concat`` is not read here: x carries it.
            times: the times that will be asked for; others work and are computed when asked.

        Returns:
            ``(x, t) -> prediction``, equal to :meth:`forward` up to rounding, with the weights as they are now.

        Raises:
            ValueError: as :meth:`forward`.
        """
        self._check_slots(cond.context, cond.context_mask, cond.vector, cond.label)
        extra = self.embed_extra(cond.vector, cond.label)
        mask = cond.context_mask
        if mask is not None and bool(mask.all()):
            mask = None  # the fastest attention kernels take no mask
        memories = self.read(cond.context, mask)
        return BoundUNet(self, cond.batch_size, extra, memories, self._table(times, extra))

    def embed_time(self, t: Tensor) -> Tensor:
        """Times (B,) to their embedding (B, 4 model_channels)."""
        emb: Tensor = self.time_embed(timestep_embedding(t, self.model_channels).to(self._dtype))
        return emb

    def embed_extra(self, vector: Tensor | None, label: Tensor | None) -> Tensor | None:
        """What a vector or a label adds to the embedding of the time, (B, 4 model_channels), or None."""
        if vector is None and label is None:
            return None
        told = label if vector is None else vector.to(self._dtype)
        emb: Tensor = self.label_emb(told)
        return emb

    def project(self, emb: Tensor) -> Tensor:
        """The embedding (B, 4 model_channels) as the shifts of all residual blocks, (B, sum of widths, 1, 1)."""
        return torch.cat([block.project(emb) for block in self._layers(ResBlock)], dim=1)

    def read(self, context: Tensor | None, mask: Tensor | None) -> tuple[tuple[BlockMemory, ...], ...]:
        """A context (B, L, context_dim) and its mask (B, L) as the memories of every transformer."""
        if context is None:
            return ()
        context = context.to(self._dtype)
        mask = None if mask is None else mask[:, None, None, :]
        return tuple(transformer.read(context, mask) for transformer in self._layers(SpatialTransformer))

    def _table(self, times: Sequence[float], extra: Tensor | None) -> dict[float, Tensor]:
        emb = self.embed_time(torch.tensor(times, dtype=torch.float32, device=self.device))[:, None]
        if extra is not None:
            emb = emb + extra
        steps, batch = emb.shape[:2]
        if steps * batch * sum(self._shift_widths) * emb.element_size() > TABLE_BYTES:
            return {}
        shifts = self.project(emb.flatten(0, 1))
        return dict(zip(map(float, times), shifts.view(steps, batch, *shifts.shape[1:]), strict=True))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._entry.weight.device

    @property
    def _dtype(self) -> torch.dtype:
        return self._entry.weight.dtype

    @property
    def _entry(self) -> nn.Linear:
        return cast(nn.Linear, self.time_embed[0])

    def _layers(self, kind: type[L]) -> list[L]:
        """The layers of one kind, in the order in which they run."""
        stages = (*self.input_blocks, self.middle_block, *self.output_blocks)
        return [layer for stage in stages for layer in cast(nn.ModuleList, stage) if isinstance(layer, kind)]

    def _check_state(self, x: Tensor) -> None:
        expected = self.channels + self.concat_channels
        if x.ndim != 4 or x.shape[1] != expected:
            raise ValueError(
                f"backbone 'unet' got a state of shape {tuple(x.shape)} and expects (B, {expected}, H, W), "
                f"{self.channels} channels of the state and {self.concat_channels} of concat: "
                "append the conditioning's concat to the state, or build the unet with other concat_channels"
            )
        if not x.is_floating_point():
            raise ValueError(f"backbone 'unet' expects a floating-point state, got {x.dtype}")
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(
                f"backbone 'unet' got {x.shape[2]} x {x.shape[3]} states and halves them {len(self.channel_mult) - 1} "
                f"times: make height and width multiples of {self.multiple}"
            )

    def _check_slots(
        self, context: Tensor | None, mask: Tensor | None, vector: Tensor | None, label: Tensor | None
    ) -> None:
        for slot, value, option in (
            ("context", context, "context_dim"),
            ("vector", vector, "vector_dim"),
            ("label", label, "num_classes"),
        ):
            if value is None and slot in self.accepts:
                raise ValueError(
                    f"backbone 'unet' reads {slot} ({option}={self.accepts[slot]}) and was given none: "
                    f"give a conditioning with {slot}, or build the unet without {option}"
                )
            if value is not None and slot not in self.accepts:
                raise ValueError(
                    f"backbone 'unet' was given {slot} of shape {tuple(value.shape)} and does not read it: "
                    f"build the unet with {option}, or drop the conditioner that provides it"
                )
        _check_width("context", context, 3, self.context_dim)
        _check_width("vector", vector, 2, self.vector_dim)
        if label is not None and (label.ndim != 1 or label.is_floating_point()):
            raise ValueError(
                f"backbone 'unet' expects label as (B,) integer classes, got {tuple(label.shape)} {label.dtype}"
            )
        if mask is not None and (context is None or mask.dtype != torch.bool or mask.shape != context.shape[:2]):
            given = None if context is None else tuple(context.shape)
            raise ValueError(
                f"backbone 'unet' expects context_mask as bool (B, L) of the context, got {mask.dtype} "
                f"{tuple(mask.shape)} for a context of shape {given}"
            )


@dataclass(frozen=True, eq=False)
class BoundUNet:
    """A UNet with one conditioning: ``(x, t) -> prediction``, holding what one sampling run computes once.

    Made by :meth:`UNet.bind`; it changes nothing and may be called from any thread.

    Args:
        unet: the network.
        batch: B of the conditioning; None where there is none and any x fits.
        extra: (B, 4 model_channels), what vector or label add to the embedding of the time.
        memories: what each transformer has read from the context.
        table: time -> the shifts of every residual block.
    """

    unet: UNet
    batch: int | None
    extra: Tensor | None
    memories: tuple[tuple[BlockMemory, ...], ...]
    table: Mapping[float, Tensor]

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """(B, channels + concat_channels, H, W) at the time t of all samples to (B, channels, H, W)."""
        if self.batch is not None and x.shape[0] != self.batch:
            raise ValueError(f"backbone 'unet' was bound to a conditioning of {self.batch} samples, got {x.shape[0]}")
        # Through the module's call, so that a UNet compiled in place (unet.compile()) is compiled here too.
        prediction: Tensor = self.unet(x, self.told(t))
        return prediction

    def told(self, t: float) -> Told:
        """What the layers are told at time t: looked up, or computed for a time that was not announced."""
        shifts = self.table.get(t)
        return Told(self._shifts(t) if shifts is None else shifts, self.memories)

    def _shifts(self, t: float) -> Tensor:
        emb = self.unet.embed_time(torch.full((1,), t, dtype=torch.float32, device=self.unet.device))
        return self.unet.project(emb if self.extra is None else emb + self.extra)


def _check_width(slot: str, value: Tensor | None, rank: int, width: int | None) -> None:
    if value is not None and (value.ndim != rank or value.shape[-1] != width):
        shape = "(B, L, {})" if rank == 3 else "(B, {})"
        raise ValueError(
            f"backbone 'unet' expects {slot} of shape {shape.format(width)}, got {tuple(value.shape)}: "
            f"build the unet with {slot}_dim={value.shape[-1]}, or project the {slot}"
        )


def _check_batch(x: Tensor, **told: Tensor | None) -> None:
    for name, value in told.items():
        if value is not None and (value.ndim == 0 or value.shape[0] != x.shape[0]):
            raise ValueError(
                f"backbone 'unet' got {x.shape[0]} states and {name} of shape {tuple(value.shape)}: "
                "every argument needs one entry per state"
            )
