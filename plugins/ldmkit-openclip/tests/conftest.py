"""A small CLIP in OpenCLIP's words, and a file of its weights: no test reads anything that is not made here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import open_clip
import pytest
import torch
from safetensors.torch import save_file

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}


@pytest.fixture(autouse=True)
def known_randomness():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def clip():
    """The published model: both halves."""
    torch.manual_seed(1)
    return open_clip.CLIP(**TINY).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def weights(tmp_path_factory, clip):
    """A file of OpenCLIP with both halves."""
    path = tmp_path_factory.mktemp("weights") / "open_clip_model.safetensors"
    save_file(clip.state_dict(), path)
    return str(path)
