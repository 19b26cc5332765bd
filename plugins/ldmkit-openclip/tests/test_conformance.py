"""The laws of their kinds, for every component that this distribution offers."""

import torch
from conftest import TINY
from ldmkit.guidance import CFG
from ldmkit.testing import Example, conformance


def prompts(n):
    """Prompts of different lengths."""
    return {"prompt": ["a red cat", "cats", "on the moon"][:n]}


def images(n):
    """Images that differ from each other and are not of the network's size."""
    return {"image": torch.rand(n, 3, 20, 12) * 2 - 1}


def as_it_is(x0):
    """The decoder of a model of pixels."""
    return x0


STEERED = {"architecture": TINY, "prompts": ["a red cat"], "decode": as_it_is, "scale": 20.0}

test_openclip_text = conformance(
    Example("conditioner", "openclip-text", {"architecture": TINY}, "penultimate", batch=prompts),
    Example(
        "conditioner",
        "openclip-text",
        {"architecture": TINY, "context": "last", "vector": "projected", "frozen": False},
        "trained",
        batch=prompts,
    ),
    Example(
        "conditioner",
        "openclip-text",
        {"architecture": TINY, "context": "embedding", "null_prompt": None},
        "embedding",
        batch=prompts,
    ),
)
test_openclip_image = conformance(
    Example("conditioner", "openclip-image", {"architecture": TINY, "vector": "projected"}, "vector", batch=images),
    Example(
        "conditioner",
        "openclip-image",
        {"architecture": TINY, "context": "penultimate", "vector": "projected", "frozen": False},
        "trained",
        batch=images,
    ),
)
UNWRITTEN = {"can-be-written-down": "it holds the decoder of a model, which is no plain data; files hold no guidance"}

test_clip_guidance = conformance(
    Example("guidance", "clip-guidance", STEERED, "alone", neutral={"scale": 0.0}, expected=UNWRITTEN),
    Example(
        "guidance",
        "clip-guidance",
        {**STEERED, "inner": CFG(2.0)},
        "with cfg",
        neutral={"scale": 0.0, "inner": CFG(1.0)},
        expected=UNWRITTEN,
    ),
)
