"""A model with every conditioner of this distribution: saved to one file, and loaded where nothing else is left."""

import os
import shutil
import subprocess
import sys

import ldmkit
import pytest
import torch
from ldmkit.composition import part_of
from ldmkit.registry import build_part
from safetensors import safe_open
from safetensors.torch import load_file

BATCH = {"prompt": ["cat on moon", ""], "image": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)}

READ = """
import sys, torch, ldmkit
model = ldmkit.load(sys.argv[1])
image = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
cond = model.conditioner({"prompt": ["cat on moon", ""], "image": image})
torch.save(cond.filled(), sys.argv[2])
"""


@pytest.fixture
def places(tmp_path, vocabulary, bert_folder, clip_folder, clip_image_folder, t5_folder):
    """Copies of all that the conditioners are read from, which a test may delete."""
    (tmp_path / "places").mkdir()
    shutil.copy(vocabulary, tmp_path / "places/vocab.txt")
    for name, folder in {
        "bert": bert_folder,
        "clip": clip_folder,
        "vision": clip_image_folder,
        "t5": t5_folder,
    }.items():
        shutil.copytree(folder, tmp_path / "places" / name)
    return tmp_path / "places"


@pytest.fixture
def model(places):
    build = ldmkit.build
    return ldmkit.LatentDiffusion(
        first_stage=build("first-stage", "pixel", channels=3),
        backbone=build(
            "backbone",
            "unet",
            channels=3,
            model_channels=32,
            channel_mult=[1],
            num_res_blocks=1,
            attention_resolutions=[1],
            num_heads=1,
            context_dim=32,
            vector_dim=48,
        ),
        process=build("process", "vp"),
        conditioner={
            "ldm": build("conditioner", "bert-text", width=32, depth=1, length=9, tokenizer=str(places / "vocab.txt")),
            "bert": build("conditioner", "bert", source=str(places / "bert"), length=10),
            "clip": build("conditioner", "clip-text", source=str(places / "clip"), vector="projected"),
            "picture": build(
                "conditioner", "clip-image", source=str(places / "vision"), context="last", vector="projected"
            ),
            "t5": build("conditioner", "t5-text", source=str(places / "t5"), length=11),
        },
    ).eval()


def test_the_file_alone_brings_everything_back_in_another_process(model, places, tmp_path):
    here = model.conditioner(BATCH).filled()
    model.save(tmp_path / "model.safetensors")
    shutil.rmtree(places)
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


def test_the_file_names_no_place_and_a_loaded_model_saves_the_same_file(model, places, tmp_path):
    model.save(tmp_path / "first.safetensors")
    with safe_open(tmp_path / "first.safetensors", framework="pt") as file:
        metadata = file.metadata()["ldmkit"]
    assert str(places) not in metadata
    assert '"bert-text@ldmkit-transformers"' in metadata
    shutil.rmtree(places)
    again = ldmkit.load(tmp_path / "first.safetensors")
    again.save(tmp_path / "second.safetensors")
    with safe_open(tmp_path / "second.safetensors", framework="pt") as file:
        assert file.metadata()["ldmkit"] == metadata
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_frozen_parts_stay_as_they_are_when_the_model_trains(model):
    model.train()
    sources = model.conditioner.conditioners()
    frozen = {name: sources[name] for name in ("bert", "clip", "picture", "t5")}
    assert not any(module.training for source in frozen.values() for module in source.modules())
    assert sources["ldm"].training
    loss = model.loss({**BATCH, "prompt": ["a cat", ""]}, seeds=[0, 1])
    loss.backward()
    assert all(p.grad is None for source in frozen.values() for p in source.parameters())
    assert any(p.grad is not None for p in sources["ldm"].parameters())


def test_it_samples_with_guidance(model):
    guidance = ldmkit.build("guidance", "cfg", scale=3.0)
    z = model.sample({**BATCH, "prompt": ["a cat", ""]}, size=(16, 16), levels=2, seed=1, guidance=guidance)
    assert z.shape == (2, 3, 16, 16)
    assert z.isfinite().all()


def test_an_option_that_was_given_and_then_changed_by_hand_is_refused(model, tmp_path):
    model.conditioner.conditioners()["bert"].length = 5
    with pytest.raises(ldmkit.CompositionError, match="changed by hand"):
        model.save(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["ldm", "bert", "clip", "t5"])
def test_a_tokenizer_may_come_after_the_weights(name, model, places):
    filled = model.conditioner.conditioners()[name]
    part = build_part("conditioner", part_of("conditioner", filled))
    part.load_state_dict({**filled.state_dict(), "prompt_tokenizer._extra_state": torch.empty(0, dtype=torch.uint8)})
    with pytest.raises(RuntimeError, match="has no tokenizer"):
        part(BATCH)
    part.eval().read_tokenizer(str(places / {"ldm": "vocab.txt"}.get(name, name)))
    torch.testing.assert_close(part(BATCH).context, filled(BATCH).context)
