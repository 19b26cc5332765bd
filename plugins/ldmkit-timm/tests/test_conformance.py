"""The laws of their kinds, for every component that this distribution offers."""

import torch
from ldmkit.testing import Example, conformance

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL = {"channels": 3, "width": 32, "depth": 2, "heads": 4}


def images(n):
    """Images that differ from each other and are not of the network's size."""
    return {"image": torch.rand(n, 3, 20, 12) * 2 - 1}


test_timm_image = conformance(
    Example(
        "conditioner", "timm-image", {"model": "vit_tiny_patch16_224", "arguments": VIT}, "transformer", batch=images
    ),
    Example(
        "conditioner",
        "timm-image",
        {"model": "vit_tiny_patch16_224", "arguments": VIT, "slot": "context", "frozen": False},
        "trained",
        batch=images,
    ),
    Example("conditioner", "timm-image", {"model": "test_resnet"}, "convolutions", batch=images),
)
test_dit = conformance(
    Example("backbone", "dit", SMALL, "unconditional"),
    Example(
        "backbone",
        "dit",
        {**SMALL, "patch": 1, "concat_channels": 2, "context_dim": 12, "vector_dim": 6, "num_classes": 4},
        "every slot",
    ),
)
