"""A model with OpenCLIP's conditioners: saved to one file, and loaded where the weights' file is gone."""

import os
import shutil
import subprocess
import sys

import ldmkit
import pytest
import torch
from conftest import TINY
from safetensors import safe_open

UNET = {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [1], "num_heads": 1}
BATCH = {"prompt": ["a cat", ""], "image": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)}

READ = """
import sys, torch, ldmkit
model = ldmkit.load(sys.argv[1])
image = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
torch.save(model.conditioner({"prompt": ["a cat", ""], "image": image}).filled(), sys.argv[2])
"""


@pytest.fixture
def place(tmp_path, weights):
    """A copy of the weights, which a test may delete."""
    return shutil.copy(weights, tmp_path / "open_clip_model.safetensors")


@pytest.fixture
def model(place):
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=3),
        backbone=ldmkit.build("backbone", "unet", channels=3, context_dim=32, vector_dim=48, **UNET),
        process=ldmkit.build("process", "vp"),
        conditioner={
            "text": ldmkit.build(
                "conditioner", "openclip-text", architecture=TINY, source=str(place), vector="projected"
            ),
            "picture": ldmkit.build(
                "conditioner",
                "openclip-image",
                architecture=TINY,
                source=str(place),
                context="penultimate",
                vector="projected",
            ),
        },
    ).eval()


def test_the_file_alone_brings_everything_back_in_another_process(model, place, tmp_path):
    here = model.conditioner(BATCH).filled()
    model.save(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert str(tmp_path) not in file.metadata()["ldmkit"]
    os.remove(place)
    run = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "model.safetensors"), str(tmp_path / "cond.pt")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    there = torch.load(tmp_path / "cond.pt")
    assert there.keys() == here.keys()
    for slot, value in here.items():
        torch.testing.assert_close(there[slot], value)


def test_frozen_towers_stay_as_they_are_when_the_model_trains(model):
    model.train()
    sources = model.conditioner.conditioners().values()
    assert not any(module.training for source in sources for module in source.modules())
    model.loss(BATCH, seeds=[0, 1]).backward()
    assert all(p.grad is None for source in sources for p in source.parameters())


def test_it_samples_with_guidance(model):
    z = model.sample(BATCH, size=(16, 16), levels=2, seed=1, guidance=ldmkit.build("guidance", "cfg", scale=3.0))
    assert z.shape == (2, 3, 16, 16)
    assert z.isfinite().all()
