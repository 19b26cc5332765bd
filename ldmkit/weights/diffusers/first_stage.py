"""The first stage: a configuration of diffusers as options of ours, and back.

``AutoencoderKL`` is ``kl``, ``VQModel`` is ``vq``. Their levels that attend are told by the types of their blocks; ours
by a side in pixels, for which the sides at 256 pixels stand here.
"""

from __future__ import annotations

from typing import Any

from ldmkit.errors import CheckpointError, CompositionError
from ldmkit.first_stages.kl import KL
from ldmkit.first_stages.vq import VQ
from ldmkit.parts import Part
from ldmkit.weights.diffusers.words import (
    Words,
    attending,
    block_types,
    class_of,
    count,
    counts,
    number,
    settled,
    without,
)

AUTOENCODER_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
_AUTOENCODER: Words = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
    "force_upcast": True,
}
_KL: Words = {
    **_AUTOENCODER,
    "latent_channels": 4,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
_VQ: Words = {
    **_AUTOENCODER,
    "latent_channels": 3,
    "num_vq_embeddings": 256,
    "vq_embed_dim": None,
    "norm_type": "group",
    "lookup_from_codebook": False,
}
_AUTOENCODER_FREE = {
    *("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block"),
    *("sample_size", "scaling_factor", "mid_block_add_attention", "force_upcast", "latent_channels"),
    *("num_vq_embeddings", "vq_embed_dim"),
}


def first_stage_part(where: str, given: Words) -> Part:
    """The ``kl`` or ``vq`` of an ``AutoencoderKL``'s or ``VQModel``'s configuration.

    Raises:
        CheckpointError: a word or value that has no place here.
    """
    build = {"AutoencoderKL": _kl_part, "VQModel": _vq_part}
    return build[class_of(where, given, build)](where, given)


def _kl_part(where: str, given: Words) -> Part:
    words = settled(where, given, _KL, without(_KL, _AUTOENCODER_FREE))
    return Part("kl", {**_autoencoder_options(where, words), "channels": count(where, words, "latent_channels")})


def _vq_part(where: str, given: Words) -> Part:
    words = settled(where, given, _VQ, without(_VQ, _AUTOENCODER_FREE))
    inner = count(where, words, "latent_channels")
    channels = inner if words["vq_embed_dim"] is None else count(where, words, "vq_embed_dim")
    options = {"channels": channels, "codebook_size": count(where, words, "num_vq_embeddings")}
    narrow = {} if inner == channels else {"z_channels": inner}
    return Part("vq", {**_autoencoder_options(where, words), **options, **narrow})


def _autoencoder_options(where: str, words: Words) -> dict[str, Any]:
    widths = counts(where, words, "block_out_channels")
    attends = attending(where, words, AUTOENCODER_BLOCKS, len(widths))
    if words["in_channels"] != words["out_channels"]:
        raise CheckpointError(f"{where} takes images of other channels than it gives, which has no place in ldmkit")
    if any(width % widths[0] for width in widths):
        raise CheckpointError(f"{where} says block_out_channels={widths}, expected multiples of the first")
    return {
        "base_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": count(where, words, "layers_per_block"),
        # A level is named by its side in pixels; only their order of size matters.
        "attn_resolutions": [256 // 2**level for level, attend in enumerate(attends) if attend],
        "attention": bool(words["mid_block_add_attention"]),
        "resolution": 256,
        "image_channels": count(where, words, "in_channels"),
        "scale": number(where, words, "scaling_factor"),
    }


def first_stage_config(stage: KL | VQ) -> dict[str, Any]:
    """The configuration of a first stage.

    Raises:
        CompositionError: it has no form there.
    """
    attends = [256 // 2**level in _at_256(stage) for level in range(len(stage.channel_mult))]
    words = {
        "_class_name": "AutoencoderKL" if isinstance(stage, KL) else "VQModel",
        "in_channels": stage.image_channels,
        "out_channels": stage.image_channels,
        "block_out_channels": [stage.base_channels * mult for mult in stage.channel_mult],
        "layers_per_block": stage.num_res_blocks,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "sample_size": stage.resolution,
        "scaling_factor": float(stage.scale),
        "mid_block_add_attention": stage.attention,
        **block_types(attends, AUTOENCODER_BLOCKS),
    }
    inner = stage.channels if stage.z_channels is None else stage.z_channels
    if isinstance(stage, VQ):
        return {
            **words,
            "latent_channels": inner,
            "vq_embed_dim": stage.channels,
            "num_vq_embeddings": stage.codebook_size,
            "norm_type": "group",
        }
    if inner != stage.channels:
        raise CompositionError(
            f"first stage 'kl' has {inner} channels before its latent of {stage.channels}, and an AutoencoderKL has as "
            "many: this model cannot be written for diffusers"
        )
    return {**words, "latent_channels": stage.channels}


def _at_256(stage: KL | VQ) -> set[int]:
    """The sides of the levels that attend, counted from 256 pixels."""
    sides = [stage.resolution // 2**level for level in range(len(stage.channel_mult))]
    return {256 // 2**level for level, side in enumerate(sides) if side in stage.attn_resolutions}
