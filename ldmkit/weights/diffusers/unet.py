"""The UNet: a configuration of diffusers as options of ours, and back.

``UNet2DModel`` is a ``unet`` without a context, ``UNet2DConditionModel`` one with. What has no place here is refused:
other norms, learned times, the added embeddings of SDXL, other kinds of attention.

In a ``UNet2DConditionModel`` the word ``attention_head_dim`` is the **number of heads**, in a ``UNet2DModel`` the width
of one; the first is an error of its first release that 40,000 configurations now contain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldmkit.backbones.unet import UNet
from ldmkit.errors import CheckpointError, CompositionError
from ldmkit.parts import Part
from ldmkit.weights.diffusers.words import (
    Words,
    attending,
    block_types,
    class_of,
    count,
    counts,
    number,
    per_level,
    same,
    settled,
    without,
)

_UNET: Words = {
    "sample_size": None,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "attention_head_dim": 8,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "layers_per_block": 2,
}
PLAIN: Words = {
    **_UNET,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "downsample_type": "conv",
    "upsample_type": "conv",
    "attn_norm_num_groups": None,
    "add_attention": True,
    "num_train_timesteps": None,
}
CONDITION: Words = {
    **_UNET,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "addition_embed_type_num_heads": 64,
    "upcast_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
}
_UNET_FREE = {
    *("sample_size", "dropout", "attention_head_dim", "class_embed_type", "num_class_embeds", "layers_per_block"),
    *("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"),
    "resnet_time_scale_shift",
}
_PLAIN_FREE = _UNET_FREE | {"downsample_type", "upsample_type", "num_train_timesteps", "attn_norm_num_groups"}
_CONDITION_FREE = _UNET_FREE | {
    *("only_cross_attention", "mid_block_only_cross_attention", "cross_attention_dim", "transformer_layers_per_block"),
    *("use_linear_projection", "projection_class_embeddings_input_dim", "addition_time_embed_dim"),
    *("addition_embed_type_num_heads", "upcast_attention"),  # the last one: the same function, in float32
}
PLAIN_BLOCKS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
}
CONDITION_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def unet_part(where: str, given: Words) -> Part:
    """The ``unet`` of a ``UNet2DModel``'s or ``UNet2DConditionModel``'s configuration.

    Raises:
        CheckpointError: a word or value that has no place here.
    """
    build = {"UNet2DModel": _plain_options, "UNet2DConditionModel": _condition_options}
    return Part("unet", build[class_of(where, given, build)](where, given))


def _plain_options(where: str, given: Words) -> dict[str, Any]:
    words = settled(where, given, PLAIN, without(PLAIN, _PLAIN_FREE))
    options, attends = _shared_options(where, words, PLAIN_BLOCKS)
    # Without the word, the middle's attention has no norm where blocks scale and shift, and 32 groups elsewhere.
    groups = (32,) if options["scale_shift_norm"] else (None, 32)
    if words["attn_norm_num_groups"] not in groups:
        raise CheckpointError(
            f"{where} says attn_norm_num_groups={words['attn_norm_num_groups']!r:.80} beside resnet_time_scale_shift="
            f"{words['resnet_time_scale_shift']!r}; expected one of {groups}"
        )
    width = words["attention_head_dim"]
    heads = {"num_heads": 1} if width is None else {"head_channels": count(where, words, "attention_head_dim")}
    resamples = [words["downsample_type"], words["upsample_type"]]
    if resamples == ["resnet", "resnet"] and all(attends):  # a block without attention ignores the word
        return {**options, **heads, "resblock_updown": True}
    if resamples != ["conv", "conv"]:
        raise CheckpointError(
            f"{where} says downsample_type and upsample_type {resamples!r:.80}; ldmkit has a place for "
            "'conv', and for 'resnet' where every level attends"
        )
    if words["class_embed_type"] is not None:
        raise CheckpointError(f"{where} says class_embed_type={words['class_embed_type']!r:.80}; expected None")
    return {**options, **heads}


def _condition_options(where: str, given: Words) -> dict[str, Any]:
    words = settled(where, given, CONDITION, without(CONDITION, _CONDITION_FREE))
    options, _ = _shared_options(where, words, CONDITION_BLOCKS)
    levels = len(options["channel_mult"])
    depths = per_level(where, words, "transformer_layers_per_block", levels)
    context = per_level(where, words, "cross_attention_dim", levels)
    return {
        **options,
        **_heads(where, words, counts(where, words, "block_out_channels")),
        **_vector(where, words),
        "context_dim": same(where, words, "cross_attention_dim", context),
        "transformer_depth": depths[0] if len(set(depths)) == 1 else depths,
        "linear_projections": bool(words["use_linear_projection"]),
        "disable_self_attention": _disabled(where, words, levels),
    }


def _shared_options(
    where: str, words: Words, kinds: Mapping[str, tuple[str, str]]
) -> tuple[dict[str, Any], list[bool]]:
    """The options that both classes say alike, and which levels attend."""
    widths = counts(where, words, "block_out_channels")
    attends = attending(where, words, kinds, len(widths))
    blocks = per_level(where, words, "layers_per_block", len(widths))
    channels, given = count(where, words, "out_channels"), count(where, words, "in_channels")
    if given < channels:
        raise CheckpointError(f"{where} has {given} channels in and {channels} out; expected no fewer in than out")
    if any(width % widths[0] for width in widths):
        raise CheckpointError(f"{where} says block_out_channels={widths}, expected multiples of the first")
    shift = words["resnet_time_scale_shift"]
    if shift not in ("default", "scale_shift"):
        raise CheckpointError(f"{where} says resnet_time_scale_shift={shift!r:.80}; known are default and scale_shift")
    options = {
        "channels": channels,
        "concat_channels": given - channels,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": same(where, words, "layers_per_block", blocks),
        "attention_resolutions": [2**level for level, attend in enumerate(attends) if attend],
        "scale_shift_norm": shift == "scale_shift",
        "dropout": number(where, words, "dropout"),
    }
    if words["num_class_embeds"] is not None:
        options["num_classes"] = count(where, words, "num_class_embeds")
    return options, attends


def _heads(where: str, words: Words, widths: list[int]) -> dict[str, int]:
    """One number of heads for all levels, or one width of a head for all levels."""
    heads = per_level(where, words, "attention_head_dim", len(widths))
    if len(set(heads)) == 1:
        return {"num_heads": heads[0]}
    sizes = {width / n for width, n in zip(widths, heads, strict=True)}
    if len(sizes) != 1 or not (size := sizes.pop()).is_integer():
        raise CheckpointError(
            f"{where} has {heads} heads at {widths} channels: neither one number nor one width of them"
        )
    return {"head_channels": int(size)}


def _vector(where: str, words: Words) -> dict[str, int]:
    match words["class_embed_type"]:
        case None:
            return {}
        case "projection":
            return {"vector_dim": count(where, words, "projection_class_embeddings_input_dim")}
    raise CheckpointError(
        f"{where} says class_embed_type={words['class_embed_type']!r:.80}; known are None and projection"
    )


def _disabled(where: str, words: Words, levels: int) -> list[bool]:
    given, middle = words["only_cross_attention"], words["mid_block_only_cross_attention"]
    disabled = [given] * levels if isinstance(given, bool) else given
    if not isinstance(disabled, list | tuple) or len(disabled) != levels or {*map(type, disabled)} != {bool}:
        raise CheckpointError(f"{where} says only_cross_attention={given!r:.80}, expected {levels} of true and false")
    if middle or (middle is None and given is True):
        raise CheckpointError(f"{where} takes self-attention from the middle block too, which always has it in ldmkit")
    return list(disabled) if any(disabled) else []


def unet_config(unet: UNet, sample_size: int | None) -> dict[str, Any]:
    """The configuration of a UNet.

    Args:
        unet: the network.
        sample_size: the side of the latent that the pipeline draws unless told otherwise.

    Raises:
        CompositionError: it has no form there.
    """
    if not unet.conv_resample:
        raise CompositionError("backbone 'unet' with conv_resample=False has no form in diffusers")
    levels = len(unet.channel_mult)
    attends = [2**level in unet.attention_resolutions for level in range(levels)]
    words = {
        "sample_size": sample_size,
        "in_channels": unet.channels + unet.concat_channels,
        "out_channels": unet.channels,
        "block_out_channels": [unet.model_channels * mult for mult in unet.channel_mult],
        "layers_per_block": unet.num_res_blocks,
        "resnet_time_scale_shift": "scale_shift" if unet.scale_shift_norm else "default",
        "dropout": unet.dropout,
        "num_class_embeds": unet.num_classes,
        **{word: _UNET[word] for word in ("act_fn", "norm_num_groups", "norm_eps", "flip_sin_to_cos", "freq_shift")},
        **{word: _UNET[word] for word in ("center_input_sample", "downsample_padding", "mid_block_scale_factor")},
    }
    if unet.context_dim is None:
        return {**words, **_plain_words(unet, attends)}
    return {**words, **_condition_words(unet, attends)}


def _plain_words(unet: UNet, attends: list[bool]) -> dict[str, Any]:
    if unet.vector_dim is not None:
        raise CompositionError("backbone 'unet' with a vector and without a context has no form in diffusers")
    if unet.resblock_updown and not all(attends):
        raise CompositionError(
            "backbone 'unet' with resblock_updown has a form in diffusers only where every level attends"
        )
    kind = "resnet" if unet.resblock_updown else "conv"
    return {
        "_class_name": "UNet2DModel",
        "attention_head_dim": _head_width(unet, attends),
        "downsample_type": kind,
        "upsample_type": kind,
        "mid_block_type": "UNetMidBlock2D",
        "add_attention": True,
        "attn_norm_num_groups": 32 if unet.scale_shift_norm else None,
        **block_types(attends, PLAIN_BLOCKS),
    }


def _head_width(unet: UNet, attends: list[bool]) -> int | None:
    """The width of a head at every level; None: one head."""
    if unet.head_channels is not None:
        return unet.head_channels
    heads = unet.num_heads or 1
    widths = {unet.model_channels * mult for mult, attend in zip(unet.channel_mult, attends, strict=True) if attend} | {
        unet.model_channels * unet.channel_mult[-1]
    }
    if heads == 1:
        return None
    if len(widths) > 1:
        raise CompositionError(
            f"backbone 'unet' has {heads} heads at levels of {sorted(widths)} channels, and a UNet2DModel heads of one "
            "width: this model cannot be written for diffusers"
        )
    return widths.pop() // heads


def _condition_words(unet: UNet, attends: list[bool]) -> dict[str, Any]:
    if unet.resblock_updown:
        raise CompositionError("backbone 'unet' with resblock_updown and a context has no form in diffusers")
    widths = [unet.model_channels * mult for mult in unet.channel_mult]
    depth = unet.transformer_depth
    return {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": unet.num_heads or [width // (unet.head_channels or width) for width in widths],
        "cross_attention_dim": unet.context_dim,
        "transformer_layers_per_block": depth if isinstance(depth, int) else list(depth),
        "use_linear_projection": unet.linear_projections,
        "only_cross_attention": list(unet.disable_self_attention) or False,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "class_embed_type": None if unet.vector_dim is None else "projection",
        "projection_class_embeddings_input_dim": unet.vector_dim,
        **block_types(attends, CONDITION_BLOCKS),
    }
