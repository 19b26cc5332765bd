"""The UNet equals the original on its recorded outputs, and has the keys and shapes of every published checkpoint.

Recorded outputs: compvis/README.md. ``zoo_state_dicts.json.gz`` lists each key and shape of the published checkpoints,
from ``state_dict()`` of the original classes under the published configurations.
"""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmkit.backbones.unet import UNet
from ldmkit.conditioning import Conditioning
from parity.recipe_weights import arrays, index, recipe_weights, relative_error

# Networks agree to about 1e-6; 1e-4 leaves room for other processors' summation orders.
TOLERANCE = 1e-4

TINY = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
RECORDED: dict[str, dict[str, Any]] = {
    "unet_uncond": {"channels": 3, "attention_resolutions": (2, 1), "head_channels": 32, **TINY},
    "unet_crossattn": {"channels": 4, "attention_resolutions": (2, 1), "num_heads": 4, "context_dim": 24, **TINY},
    # num_head_channels 32 beside a transformer, as today's original code reads it: C // 32 heads, here 4.
    "unet_crossattn_legacy_heads": {
        **TINY,
        "channels": 3,
        "model_channels": 64,
        "attention_resolutions": (2,),
        "head_channels": 32,
        "context_dim": 16,
        "transformer_depth": 2,
    },
    "unet_updown_scaleshift": {
        **TINY,
        "channels": 4,
        "attention_resolutions": (1, 2),
        "num_heads": 4,
        "scale_shift_norm": True,
        "resblock_updown": True,
    },
    "unet_concat_updown": {
        **TINY,
        "channels": 3,
        "concat_channels": 4,
        "attention_resolutions": (2,),
        "num_heads": 8,
        "resblock_updown": True,
    },
    "unet_classes": {"channels": 3, "attention_resolutions": (2,), "num_heads": 2, "num_classes": 10, **TINY},
}


@pytest.fixture(params=RECORDED)
def recorded(request: pytest.FixtureRequest) -> tuple[UNet, dict[str, torch.Tensor]]:
    """The UNet of one recorded file under the recorded weights, and the file's arrays."""
    entry = index()[request.param]
    unet = UNet(**RECORDED[request.param]).eval()
    unet.load_state_dict(recipe_weights(dict(entry["state_dict"]), entry["weights_seed"]))
    return unet, arrays(request.param)


@torch.no_grad()
def test_forward_matches_the_original(recorded: tuple[UNet, dict[str, torch.Tensor]]) -> None:
    unet, file = recorded
    out = unet(file["x"], file["t"], context=file.get("context"), label=file.get("y"))
    assert relative_error(out, file["out"]) < TOLERANCE


@torch.no_grad()
def test_bind_matches_the_original(recorded: tuple[UNet, dict[str, torch.Tensor]]) -> None:
    unet, file = recorded
    times = file["t"].tolist()
    bound = unet.bind(Conditioning(context=file.get("context"), label=file.get("y")), times)
    # The two recorded samples have a time each, a sampling step has one for all.
    out = torch.stack([bound(file["x"], t)[i] for i, t in enumerate(times)])
    assert relative_error(out, file["out"]) < TOLERANCE


FACES = {
    "channels": 3,
    "model_channels": 224,
    "channel_mult": (1, 2, 3, 4),
    "attention_resolutions": (8, 4, 2),
    "head_channels": 32,
}
SEMANTIC = {
    "channels": 3,
    "concat_channels": 3,
    "model_channels": 128,
    "channel_mult": (1, 4, 8),
    "attention_resolutions": (32, 16, 8),
    "num_heads": 8,
}
SD1 = {
    "channels": 4,
    "model_channels": 320,
    "channel_mult": (1, 2, 4, 4),
    "attention_resolutions": (4, 2, 1),
    "num_heads": 8,
    "context_dim": 768,
}
SD2 = {
    "channels": 4,
    "model_channels": 320,
    "channel_mult": (1, 2, 4, 4),
    "attention_resolutions": (4, 2, 1),
    "head_channels": 64,
    "context_dim": 1024,
    "linear_projections": True,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "ldm/celeba256": FACES,
    "ldm/ffhq256": FACES,
    "ldm/lsun_beds256": FACES,
    "ldm/lsun_churches256": {
        "channels": 4,
        "model_channels": 192,
        "channel_mult": (1, 2, 2, 4, 4),
        "attention_resolutions": (1, 2, 4, 8),
        "num_heads": 8,
        "scale_shift_norm": True,
        "resblock_updown": True,
    },
    "ldm/cin256": {
        "channels": 4,
        "model_channels": 256,
        "channel_mult": (1, 2, 4),
        "attention_resolutions": (4, 2, 1),
        "num_heads": 1,
        "context_dim": 512,
    },
    "ldm/text2img256": {
        "channels": 3,
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 5),
        "attention_resolutions": (8, 4, 2),
        "num_heads": 1,
        "context_dim": 640,
    },
    "ldm/layout2img-openimages256": {
        "channels": 3,
        "model_channels": 128,
        "channel_mult": (1, 2, 3, 4),
        "attention_resolutions": (8, 4, 2),
        "num_heads": 1,
        "context_dim": 512,
        "transformer_depth": 3,
    },
    "ldm/semantic_synthesis256": SEMANTIC,
    "ldm/semantic_synthesis512": SEMANTIC,
    "ldm/bsr_sr": {
        "channels": 3,
        "concat_channels": 3,
        "model_channels": 160,
        "channel_mult": (1, 2, 2, 4),
        "attention_resolutions": (16, 8),
        "head_channels": 32,
    },
    "ldm/inpainting_big": {
        "channels": 3,
        "concat_channels": 4,
        "model_channels": 256,
        "channel_mult": (1, 2, 3, 4),
        "attention_resolutions": (8, 4, 2),
        "num_heads": 8,
        "resblock_updown": True,
    },
    "ldm/cin256-v2": {
        "channels": 3,
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 5),
        "attention_resolutions": (8, 4, 2),
        "num_heads": 1,
        "context_dim": 512,
    },
    "ldm/txt2img-1p4B-eval": {**SD1, "context_dim": 1280, "checkpoint": True},
    "ldm/rdm-768x768": {
        "channels": 16,
        "model_channels": 448,
        "channel_mult": (1, 2, 3, 4),
        "attention_resolutions": (4, 2, 1),
        "head_channels": 32,
        "context_dim": 768,
        "checkpoint": True,
    },
    "sd/sd_v1": SD1,
    "sd/sd_v2": SD2,
    "sd/sd_v2_v": SD2,
    "sd/sd_v2_inpainting": {**SD2, "concat_channels": 5},
    "sd/sd_v2_depth": {**SD2, "concat_channels": 1},
    "sd/sd_x4_upscaler": {
        "channels": 4,
        "concat_channels": 3,
        "model_channels": 256,
        "channel_mult": (1, 2, 2, 4),
        "attention_resolutions": (2, 4, 8),
        "num_heads": 8,
        "context_dim": 1024,
        "linear_projections": True,
        "disable_self_attention": (True, True, True, False),
        "num_classes": 1000,
    },
}


@cache
def zoo() -> dict[str, dict[str, list[Any]]]:
    """Checkpoint -> key -> [shape, dtype]."""
    file = Path(__file__).with_name("zoo_state_dicts.json.gz")
    read: dict[str, dict[str, list[Any]]] = json.loads(gzip.decompress(file.read_bytes()))
    return read


def test_every_published_diffusion_model_is_covered() -> None:
    assert {name for name in zoo() if not name.startswith("first_stage/")} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_equal_the_published_checkpoint(name: str) -> None:
    prefix = "model.diffusion_model."
    published = {key.removeprefix(prefix): shape for key, (shape, _) in zoo()[name].items() if key.startswith(prefix)}
    with torch.device("meta"):
        unet = UNet(num_res_blocks=2, **PUBLISHED[name])
    assert {key: list(value.shape) for key, value in unet.state_dict().items()} == published
