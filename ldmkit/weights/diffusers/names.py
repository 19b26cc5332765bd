"""The names that diffusers gives to the tensors of our components.

Both networks are walked by role. Every module that holds tensors has a *place*, its path there, and a table for its
children; what is left of a name is the same on both sides. Three things are more than a name:

=================================  ============================================================
here                               there
=================================  ============================================================
``qkv``, one convolution           ``to_q``, ``to_k``, ``to_v``; here the rows lie head by head
1 x 1 convolutions of attention    linear maps, whose weights lack the trailing ones
decoder levels, finest first       coarsest first
=================================  ============================================================

Older files call the four maps of plain attention ``query``, ``key``, ``value`` and ``proj_attn``: see :func:`current`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ldmkit.backbones.layers import AttentionBlock, Downsample, ResBlock, SpatialTransformer, Upsample
from ldmkit.backbones.unet import UNet
from ldmkit.first_stages.kl import KL
from ldmkit.first_stages.vq import VQ

Shape: TypeAlias = tuple[int, ...]
Place: TypeAlias = tuple[str, Mapping[str, str]]
"""A module's path there, and its children's names there; children that are not listed keep theirs."""


class Entry(Protocol):
    """How one tensor of ours is made of theirs, and back."""

    @property
    def names(self) -> tuple[str, ...]:
        """Their names of what it is made of."""

    def take(self, theirs: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Our tensor, of that shape."""

    def give(self, ours: Tensor) -> dict[str, Tensor]:
        """Their tensors."""


Names: TypeAlias = dict[str, Entry]


@dataclass(frozen=True)
class Alike:
    """The same tensor under another name; ``linear``: without the trailing ones of a convolution's kernel."""

    name: str
    linear: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def take(self, theirs: Mapping[str, Tensor], shape: Shape) -> Tensor:
        return theirs[self.name].reshape(shape)

    def give(self, ours: Tensor) -> dict[str, Tensor]:
        return {self.name: ours.flatten(1) if self.linear else ours}


@dataclass(frozen=True)
class Fused:
    """``qkv``: per head the rows of q, of k and of v."""

    path: str
    leaf: str
    heads: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.path}.{name}.{self.leaf}" for name in ("to_q", "to_k", "to_v"))

    def take(self, theirs: Mapping[str, Tensor], shape: Shape) -> Tensor:
        parts = [theirs[name].reshape(self.heads, -1, *shape[1:]) for name in self.names]
        return torch.stack(parts, dim=1).reshape(shape)

    def give(self, ours: Tensor) -> dict[str, Tensor]:
        rows = ours.view(self.heads, 3, -1, *ours.shape[1:]).unbind(1)
        values = [part.flatten(0, 1) for part in rows]
        return dict(zip(self.names, (v.flatten(1) if v.ndim > 1 else v for v in values), strict=True))


RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
AUTOENCODER_BLOCK = {"nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
LINEAR = ("q", "k", "v", "proj_out")
TWO_LAYERS = {"0": "linear_1", "2": "linear_2", "0.0": "linear_1", "0.2": "linear_2"}

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


def current(name: str) -> str:
    """A name as today's diffusers writes it."""
    old = _OLD_NAME.search(name)
    return name if old is None else f"{name[: old.start()]}{old[1]}.{_OLD[old[2]]}.{old[3]}"


def unet_names(unet: UNet) -> Names:
    """The names of a UNet's tensors in a ``UNet2DModel`` or ``UNet2DConditionModel``."""
    blocks = unet.num_res_blocks + 1
    places: dict[str, Place] = {
        "time_embed": ("time_embedding", TWO_LAYERS),
        "label_emb": ("class_embedding", TWO_LAYERS),
        "input_blocks.0.0": ("conv_in", {}),
        "out.0": ("conv_norm_out", {}),
        "out.2": ("conv_out", {}),
    }
    stages = [(f"input_blocks.{n + 1}", "down", n, stage) for n, stage in enumerate(list(unet.input_blocks)[1:])]
    stages += [(f"output_blocks.{n}", "up", n, stage) for n, stage in enumerate(unet.output_blocks)]
    for ours, way, n, stage in stages:
        for index, layer in enumerate(stage.children()):
            slot, table = _role(layer, n % blocks)
            places[f"{ours}.{index}"] = f"{way}_blocks.{n // blocks}.{slot}", table
    for index, (layer, number) in enumerate(zip(unet.middle_block, (0, 0, 1), strict=True)):
        slot, table = _role(layer, number)
        places[f"middle_block.{index}"] = f"mid_block.{slot}", table
    return _named(unet, places)


def _role(layer: nn.Module, number: int) -> Place:
    match layer:
        case ResBlock(resample=Downsample()):
            return "downsamplers.0", RES_BLOCK
        case ResBlock(resample=Upsample()):
            return "upsamplers.0", RES_BLOCK
        case ResBlock():
            return f"resnets.{number}", RES_BLOCK
        case Downsample():
            return "downsamplers.0", {"op": "conv"}
        case Upsample():
            return "upsamplers.0", {}
        case AttentionBlock():
            return f"attentions.{number}", ATTENTION
        case SpatialTransformer():
            return f"attentions.{number}", {}
    raise TypeError(f"the UNet has a {type(layer).__name__}, which has no place in diffusers")


def autoencoder_names(stage: KL | VQ) -> Names:
    """The names of a first stage's tensors in an ``AutoencoderKL`` or ``VQModel``, where its ``scale`` is a word."""
    places: dict[str, Place] = {name: (name, {}) for name in ("quant_conv", "post_quant_conv", "quantize.embedding")}
    levels, blocks = len(stage.channel_mult), stage.num_res_blocks + 1
    for half in ("encoder", "decoder"):
        places |= {f"{half}.{name}": (f"{half}.{name}", {}) for name in ("conv_in", "conv_out")}
        places[f"{half}.norm_out"] = f"{half}.conv_norm_out", {}
        places[f"{half}.mid.attn_1"] = f"{half}.mid_block.attentions.0", ATTENTION
        for n in (0, 1):
            places[f"{half}.mid.block_{n + 1}"] = f"{half}.mid_block.resnets.{n}", AUTOENCODER_BLOCK
    for level in range(levels):
        for ours, theirs in (
            (f"encoder.down.{level}", f"encoder.down_blocks.{level}"),
            (f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"),
        ):
            places[f"{ours}.downsample"] = f"{theirs}.downsamplers.0", {}
            places[f"{ours}.upsample"] = f"{theirs}.upsamplers.0", {}
            for n in range(blocks):
                places[f"{ours}.block.{n}"] = f"{theirs}.resnets.{n}", AUTOENCODER_BLOCK
                places[f"{ours}.attn.{n}"] = f"{theirs}.attentions.{n}", ATTENTION
    return _named(stage, places)


def _named(module: nn.Module, places: Mapping[str, Place]) -> Names:
    return {key: _entry(module, key, places) for key in module.state_dict() if key != "scale"}


def _entry(module: nn.Module, key: str, places: Mapping[str, Place]) -> Entry:
    ours = next(path for path in _ancestors(key) if path in places)
    path, table = places[ours]
    child, _, leaf = key.removeprefix(f"{ours}.").rpartition(".")
    if table is ATTENTION and child == "qkv":
        block = module.get_submodule(ours)
        if not isinstance(block, AttentionBlock):
            raise TypeError(f"'{ours}' is a {type(block).__name__}, expected plain attention")
        return Fused(path, leaf, 1 if block.qkv_first else block.heads)
    linear = table is ATTENTION and child in LINEAR and leaf == "weight"
    return Alike(".".join(filter(None, (path, table.get(child, child), leaf))), linear)


def _ancestors(key: str) -> Iterable[str]:
    """The paths of the modules above a tensor, the nearest first."""
    parts = key.split(".")
    return (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))


def bert_names(depth: int) -> Names:
    """The names of the tensors of ``bert-text`` in an ``LDMBertModel`` with that many layers."""
    modules = {"norm": "model.layer_norm", "to_logits": "to_logits"}
    plain = {"token_emb": "model.embed_tokens", "pos_emb.emb": "model.embed_positions"}
    bare: dict[str, str] = {}
    for n in range(depth):
        attention, feed_forward, theirs = (
            f"attn_layers.layers.{2 * n}",
            f"attn_layers.layers.{2 * n + 1}",
            f"model.layers.{n}",
        )
        modules |= {
            f"{attention}.0": f"{theirs}.self_attn_layer_norm",
            f"{feed_forward}.0": f"{theirs}.final_layer_norm",
        }
        modules |= {f"{feed_forward}.1.net.0.0": f"{theirs}.fc1", f"{feed_forward}.1.net.2": f"{theirs}.fc2"}
        modules[f"{attention}.1.to_out"] = f"{theirs}.self_attn.out_proj"
        bare |= {f"{attention}.1.to_{name}": f"{theirs}.self_attn.{name}_proj" for name in "qkv"}
    weights = {**modules, **plain, **bare}
    names: Names = {f"transformer.{ours}.weight": Alike(f"{theirs}.weight") for ours, theirs in weights.items()}
    return names | {f"transformer.{ours}.bias": Alike(f"{theirs}.bias") for ours, theirs in modules.items()}


def clip_names(keys: Iterable[str], prefix: str) -> Names:
    """The names of the tensors of ``clip-text`` in a ``CLIPTextModel``.

    Args:
        keys: ours.
        prefix: ``text_model.``, or nothing as the latest transformers writes it.
    """
    ours = "transformer.text_model."
    return {key: Alike(prefix + key.removeprefix(ours)) for key in keys if key.startswith(ours)}
