"""A model with a transformer for backbone and pictures for conditions: trained, sampled, saved, loaded elsewhere."""

import os
import subprocess
import sys

import ldmkit
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
IMAGE = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
BATCH = {"label": torch.tensor([1, 0]), "image": IMAGE}

READ = """
import sys, torch, ldmkit
model = ldmkit.load(sys.argv[1])
batch = {"label": torch.tensor([1, 0]), "image": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)}
torch.save(model.sample(batch, size=(16, 16), levels=3, seed=4), sys.argv[2])
"""


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", **VIT).state_dict(), path)
    return path


@pytest.fixture
def model(weights):
    options = {"model": "vit_tiny_patch16_224", "arguments": VIT, "source": str(weights)}
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=3),
        backbone=ldmkit.build(
            "backbone", "dit", channels=3, width=32, depth=2, heads=4, context_dim=24, vector_dim=24, num_classes=4
        ),
        process=ldmkit.build("process", "vp", betas="cosine"),
        prediction="v",
        conditioner={
            "class": ldmkit.build("conditioner", "class-index", classes=3),
            "gist": ldmkit.build("conditioner", "timm-image", **options),
            "patches": ldmkit.build("conditioner", "timm-image", slot="context", **options),
        },
    )


def test_it_learns(model):
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(40):
        loss = model.loss(BATCH, seeds=[step % 4, 5 + step % 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_the_file_alone_brings_everything_back_in_another_process(model, weights, tmp_path):
    model.eval()
    torch.nn.init.normal_(model.backbone.final_layer.linear.weight, std=0.1)
    here = model.sample(BATCH, size=(16, 16), levels=3, seed=4)
    model.save(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert str(tmp_path) not in file.metadata()["ldmkit"]
    weights.unlink()
    run = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "model.safetensors"), str(tmp_path / "z.pt")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    torch.testing.assert_close(torch.load(tmp_path / "z.pt"), here)


def test_it_samples_with_guidance_at_any_size_of_whole_patches(model):
    guidance = ldmkit.build("guidance", "cfg", scale=2.0)
    z = model.eval().sample(BATCH, size=(6, 10), levels=2, seed=1, guidance=guidance)
    assert z.shape == (2, 3, 6, 10)
    assert z.isfinite().all()
    with pytest.raises(ValueError, match="multiples of 2 px"):
        model.sample(BATCH, size=(5, 10), levels=2)


def test_a_composition_that_does_not_fit_names_both_parts():
    with pytest.raises(ldmkit.CompositionError, match=r"backbone 'dit'.*context_dim=8"):
        ldmkit.LatentDiffusion(
            first_stage=ldmkit.build("first-stage", "pixel", channels=3),
            backbone=ldmkit.build("backbone", "dit", channels=3, width=32, depth=1, heads=4, context_dim=16),
            process=ldmkit.build("process", "vp"),
            conditioner=ldmkit.build("conditioner", "class-label", classes=3, width=8),
        )
