"""The first stages against recorded outputs of the original, and against every key and shape of published files.

Recorded outputs: ``compvis/README.md``. ``zoo_state_dicts.json.gz`` holds the name, shape and dtype of every tensor of
the published checkpoints, as the original's classes build them; it holds no weights.
"""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from ldmkit.first_stages import KL, VQ
from parity.recipe_weights import arrays, index, recipe_weights, relative_error

KL_F8 = {"channels": 4, "channel_mult": (1, 2, 4, 4)}
KL_F16 = {"channels": 16, "channel_mult": (1, 1, 2, 2, 4), "attn_resolutions": (16,)}
VQ_F4 = {"channels": 3, "codebook_size": 8192, "channel_mult": (1, 2, 4)}
VQ_F4_NOATTN = {**VQ_F4, "attention": False}
VQ_F8 = {"channels": 4, "codebook_size": 16384, "channel_mult": (1, 2, 2, 4), "attn_resolutions": (32,)}

PUBLISHED = {
    "first_stage/kl-f4": (KL, {"channels": 3, "channel_mult": (1, 2, 4)}),
    "first_stage/kl-f8": (KL, KL_F8),
    "first_stage/kl-f16": (KL, KL_F16),
    "first_stage/kl-f32": (KL, {"channels": 64, "channel_mult": (1, 1, 2, 2, 4, 4), "attn_resolutions": (16, 8)}),
    "first_stage/vq-f4": (VQ, VQ_F4),
    "first_stage/vq-f4-noattn": (VQ, VQ_F4_NOATTN),
    "first_stage/vq-f8": (VQ, VQ_F8),
    "first_stage/vq-f8-n256": (VQ, {**VQ_F8, "codebook_size": 256}),
    "first_stage/vq-f16": (
        VQ,
        {"channels": 8, "codebook_size": 16384, "channel_mult": (1, 1, 2, 2, 4), "attn_resolutions": (16,)},
    ),
    "ldm/cin256": (VQ, VQ_F8),
    "ldm/inpainting_big": (VQ, VQ_F4_NOATTN),
    "ldm/lsun_churches256": (KL, KL_F8),
    "ldm/rdm-768x768": (KL, KL_F16),
    "sd/sd_v1": (KL, KL_F8),
    "sd/sd_x4_upscaler": (KL, {"channels": 4, "channel_mult": (1, 2, 4)}),
}


@cache
def published_shapes() -> dict[str, dict[str, list]]:
    with gzip.open(Path(__file__).parent / "zoo_state_dicts.json.gz", "rt") as file:
        return json.load(file)


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Every tensor of a state dict but ``scale``, which the original keeps in its diffusion model."""
    return {key: list(value.shape) for key, value in module.state_dict().items() if key != "scale"}


def recorded(name: str) -> nn.Module:
    """A first stage of ours under the recorded model's options and weights."""
    entry = index()[name]
    params = entry["params"]
    original = params["ddconfig"]
    options = {
        "channels": params["embed_dim"],
        "z_channels": original["z_channels"],
        "base_channels": original["ch"],
        "channel_mult": tuple(original["ch_mult"]),
        "num_res_blocks": original["num_res_blocks"],
        "attn_resolutions": tuple(original["attn_resolutions"]),
        "attention": original.get("attn_type") != "none",
        "resolution": original["resolution"],
        "image_channels": original["in_channels"],
        "dropout": original["dropout"],
    }
    stage = VQ(codebook_size=params["n_embed"], **options) if "n_embed" in params else KL(**options)
    assert shapes_of(stage) == entry["state_dict"]
    weights = recipe_weights(entry["state_dict"], entry["weights_seed"])
    stage.load_state_dict({**weights, "scale": torch.tensor(1.0)})
    return stage.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["first_stage_kl_f4", "first_stage_kl_f4_attn"])
def test_kl_matches_the_original(name):
    stage, expected = recorded(name), arrays(name)
    posterior = stage.posterior(expected["x"])
    assert relative_error(posterior.mean, expected["mean"]) < 1e-4
    assert relative_error(posterior.logvar, expected["logvar"]) < 1e-4
    assert relative_error(posterior.kl(), expected["kl"]) < 1e-4
    assert relative_error(stage.decode(expected["mean"]), expected["decoded_mean"]) < 1e-4


@pytest.mark.parametrize("name", ["first_stage_vq_f4", "first_stage_vq_f4_noattn"])
def test_vq_matches_the_original(name):
    stage, expected = recorded(name), arrays(name)
    assert relative_error(stage.encode(expected["x"]), expected["h"]) < 1e-4
    assert torch.equal(stage.to_indices(expected["h"]).flatten(), expected["indices"])
    assert relative_error(stage.nearest_code(expected["h"]), expected["quantized"]) < 1e-6
    assert relative_error(stage.decode(expected["h"]), expected["decoded"]) < 1e-4
    assert relative_error(stage.decode_unquantized(expected["h"]), expected["decoded_no_quantize"]) < 1e-4


@pytest.mark.parametrize("name", ["first_stage_vq_f4", "first_stage_vq_f4_noattn"])
def test_vq_codes_of_an_image_are_the_originals(name):
    """Through the whole encoder: no latent of these two lies within rounding of the border between two codes."""
    stage, expected = recorded(name), arrays(name)
    _, quantized = stage(expected["x"])
    assert torch.equal(quantized.indices.flatten(), expected["indices"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_are_those_of_the_published_file(name):
    kind, options = PUBLISHED[name]
    prefix = "" if name.startswith("first_stage/") else "first_stage_model."
    expected = {
        key.removeprefix(prefix): shape
        for key, (shape, _) in published_shapes()[name].items()
        if key.startswith(prefix)
    }
    with torch.device("meta"):
        stage = kind(**options)
    assert shapes_of(stage) == expected


def test_every_published_first_stage_is_covered():
    names = {name for name in published_shapes() if name.startswith("first_stage/")}
    assert len(names) == 9
    assert names <= PUBLISHED.keys()
