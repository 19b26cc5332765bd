"""The same networks in diffusers, and the map from our parameter names to theirs. Importing this needs diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from ldmkit.backbones.unet import UNet
from ldmkit.first_stages.kl import KL

M = TypeVar("M", bound=nn.Module)
Rules = tuple[tuple[str, str], ...]

UNET_NAMES: Rules = (
    (r"^time_embed\.0", "time_embedding.linear_1"),
    (r"^time_embed\.2", "time_embedding.linear_2"),
    (r"^input_blocks\.0\.0", "conv_in"),
    (r"^middle_block\.1", "mid_block.attentions.0"),
    (r"^middle_block\.0", "mid_block.resnets.0"),
    (r"^middle_block\.2", "mid_block.resnets.1"),
    (r"^out\.0", "conv_norm_out"),
    (r"^out\.2", "conv_out"),
    (r"in_layers\.0", "norm1"),
    (r"in_layers\.2", "conv1"),
    (r"emb_layers\.1", "time_emb_proj"),
    (r"out_layers\.0", "norm2"),
    (r"out_layers\.3", "conv2"),
    (r"skip_connection", "conv_shortcut"),
)
FIRST_STAGE_NAMES: Rules = (
    (r"norm_out", "conv_norm_out"),
    (r"nin_shortcut", "conv_shortcut"),
    (r"mid\.block_1", "mid_block.resnets.0"),
    (r"mid\.block_2", "mid_block.resnets.1"),
    (r"mid\.attn_1", "mid_block.attentions.0"),
    (r"(attentions\.0)\.norm", r"\1.group_norm"),
    (r"(attentions\.0)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.0)\.proj_out", r"\1.to_out.0"),
    (r"down\.(\d+)\.block", r"down_blocks.\1.resnets"),
    (r"down\.(\d+)\.downsample", r"down_blocks.\1.downsamplers.0"),
)


def unet(ours: UNet) -> UNet2DConditionModel:
    """diffusers' UNet of the same shape, on ``meta``."""
    levels = range(len(ours.channel_mult))
    attends = [2**level in ours.attention_resolutions for level in levels]
    with torch.device("meta"):
        return UNet2DConditionModel(
            in_channels=ours.channels,
            out_channels=ours.channels,
            layers_per_block=ours.num_res_blocks,
            block_out_channels=[ours.model_channels * mult for mult in ours.channel_mult],
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
            cross_attention_dim=ours.context_dim,
            # The number of heads: diffusers keeps the name that it once gave to it.
            attention_head_dim=ours.num_heads,
        )


def first_stage(ours: KL) -> AutoencoderKL:
    """diffusers' autoencoder of the same shape, on ``meta``."""
    levels = len(ours.channel_mult)
    with torch.device("meta"):
        return AutoencoderKL(
            latent_channels=ours.channels,
            layers_per_block=ours.num_res_blocks,
            block_out_channels=[ours.base_channels * mult for mult in ours.channel_mult],
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
        )


def sharing(theirs: M, ours: UNet | KL) -> M:
    """Fill their network with our weights: the same memory, under their names and in their shapes.

    Raises:
        RuntimeError: a name or a shape that the map does not meet.
    """
    name: Callable[[str], str] = unet_name(ours) if isinstance(ours, UNet) else first_stage_name(ours)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    tensors = {name(key): tensor for key, tensor in ours.state_dict().items() if key != "scale"}
    # A 1 x 1 convolution here is a linear map there; anything else that differs is left to fail.
    tensors = {k: t.view(shapes[k]) if t.shape[2:] == (1, 1) and k in shapes else t for k, t in tensors.items()}
    theirs.load_state_dict(tensors, assign=True)
    return theirs.eval().requires_grad_(False)


def tuned(theirs: M, fused: bool) -> M:
    """With the switches that act on one network alone: channels-last weights and, if asked, fused projections."""
    theirs.to(memory_format=torch.channels_last)
    if fused:
        theirs.fuse_qkv_projections()
    return theirs


def unet_name(ours: UNet) -> Callable[[str], str]:
    """Our parameter name -> theirs. A level's stages, numbered through here, are layers of a block there."""

    def name(key: str) -> str:
        stage = re.match(r"(in|out)put_blocks\.(\d+)\.(\d+)\.(.*)", key)
        if stage and key != "input_blocks.0.0.weight" and key != "input_blocks.0.0.bias":
            way, index, part, rest = stage.groups()
            block, layer = divmod(int(index) - (way == "in"), ours.num_res_blocks + 1)
            place = f"{'down' if way == 'in' else 'up'}_blocks.{block}"
            if rest.startswith(("op.", "conv.")):
                return f"{place}.{'down' if way == 'in' else 'up'}samplers.0.conv.{rest.partition('.')[2]}"
            key = f"{place}.{'attentions' if int(part) else 'resnets'}.{layer}.{rest}"
        return renamed(key, UNET_NAMES)

    return name


def first_stage_name(ours: KL) -> Callable[[str], str]:
    """Our parameter name -> theirs. Their decoder numbers its levels in the order in which they run."""

    def up(found: re.Match[str]) -> str:
        level = len(ours.channel_mult) - 1 - int(found[1])
        return f"up_blocks.{level}.{'resnets' if found[2] == 'block' else 'upsamplers.0'}"

    return lambda key: renamed(re.sub(r"\bup\.(\d+)\.(block|upsample)", up, key), FIRST_STAGE_NAMES)


def renamed(key: str, rules: Rules) -> str:
    """The key with every rule applied, in order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
