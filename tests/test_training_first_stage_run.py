"""Whole runs of a first stage: what is learned, written and read back, and two processes against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from first_stage_job import SPREADS, compression, images, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import ldmkit
from ldmkit.errors import BatchError, CheckpointError, CompositionError
from ldmkit.first_stages import KL, VQ
from ldmkit.latents import latent_statistics
from ldmkit.training.compression import Compression, load_first_stage, save_first_stage
from ldmkit.training.contract import Reporting, Trainee
from ldmkit.training.discriminator import Adversary, PatchGAN
from ldmkit.training.first_stage import CodebookWeight, FirstStageLoss, KLWeight
from ldmkit.training.log import read_log
from ldmkit.training.loop import train
from ldmkit.training.optim import AdamW

TESTS = Path(__file__).parent
KINDS = ["kl", "vq"]
UNET = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": (), "num_heads": 1}
EXTRA = {"kl": {"kl", "posterior_std"}, "vq": {"codebook_loss", "used", "perplexity"}}
JUDGED = {
    *("psnr", "ssim", "pixels", "perceptual", "fit", "regulariser"),
    *("latent_mean", "latent_std", "latent_snr", "recommended_scale"),
}


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory):
    """(kind, trainee, folder) of a run of 4 steps, with the adversary from step 2 on."""
    out = tmp_path_factory.mktemp(request.param)
    trainee = compression(request.param)
    train(trainee, images(), run(out))
    return request.param, trainee, out


@pytest.mark.parametrize("kind", KINDS)
def test_a_compression_is_a_trainee(kind):
    assert isinstance(compression(kind), Trainee)
    assert isinstance(compression(kind), Reporting)
    assert list(compression(kind).phases) == ["autoencoder", "discriminator"]
    stage = compression(kind).stage
    assert list(Compression(stage, compression(kind).autoencoder.loss).phases) == ["autoencoder"]


def test_a_run_leaves_reconstructions_and_a_first_stage(finished):
    kind, trainee, out = finished
    assert (out / "shown" / "reconstructions-00000004.png").exists()
    stage = load_first_stage(out / "model.safetensors")
    assert type(stage) is {"kl": KL, "vq": VQ}[kind]
    assert not stage.training
    z = stage.encode(trainee.shown)
    assert torch.equal(z, trainee.stage.encode(trainee.shown))
    assert torch.equal(stage.decode(z), trainee.stage.decode(z))
    ldmkit.LatentDiffusion(
        first_stage=stage,
        backbone=ldmkit.build("backbone", "unet", **UNET, channels=stage.channels),
        process=ldmkit.build("process", "vp"),
        prediction="eps",
    )


def test_the_file_says_how_good_it_is(finished):
    kind, trainee, out = finished
    with safe_open(out / "model.safetensors", "pt") as file:
        notes = json.loads(file.metadata()["notes"])
    assert notes["numbers"].keys() == JUDGED | EXTRA[kind]
    assert notes["steps"] == 4
    scale = notes["numbers"]["recommended_scale"]
    assert scale * latent_statistics(trainee.stage, [trainee.shown]).overall == pytest.approx(1, rel=1e-4)


def shown(folder):
    """The lines of a log that are of the shown images."""
    return [line for line in read_log(folder / "log.jsonl") if "shown/psnr" in line]


def test_the_log_says_at_an_interval_how_good_it_is(finished):
    kind, trainee, out = finished
    lines = shown(out)
    assert [line.pop("step") for line in lines] == [4]
    names = {f"shown/{name}" for name in (*JUDGED, *EXTRA[kind], "adversarial", "adversary_weight")}
    assert all(line.keys() == names for line in lines)
    made, told = trainee.measured(trainee.shown)
    assert {name: lines[-1][f"shown/{name}"] for name in told} == pytest.approx(told, rel=1e-5)
    error = (made - (trainee.shown / 2 + 0.5)).square().mean(dim=(1, 2, 3))
    assert lines[-1]["shown/psnr"] == pytest.approx(float(-10 * error.log10().mean()), rel=1e-5)
    z = latent_statistics(trainee.stage, [trainee.shown])
    assert lines[-1]["shown/latent_snr"] == pytest.approx(0.1298 * z.overall**2, rel=1e-3)
    assert lines[-1]["shown/adversary_weight"] > 0


def test_the_adversary_is_reported_from_its_start():
    trainee = compression("vq", start=2)
    assert trainee.numbers(1).keys() == JUDGED | EXTRA["vq"]
    numbers = trainee.numbers(2)
    terms = trainee.autoencoder.terms(trainee.shown, range(len(trainee.shown)), 2)
    assert numbers["adversary_weight"] == pytest.approx(float(terms.weight.detach()))
    assert numbers["adversarial"] == pytest.approx(float(terms.adversarial.detach().mean()))
    assert all(p.grad is None for phase in trainee.phases.values() for p in phase.parameters())
    stage = compression("kl").stage
    assert Compression(stage, compression("kl").autoencoder.loss).numbers(2) == {}


def test_numbers_are_of_the_averages(tmp_path):
    trainee = compression("kl", start=1000)
    train(trainee, images(), run(tmp_path, ema=0.9, show_every=2))
    told = trainee.measured(trainee.shown)[1]
    assert {name: shown(tmp_path)[-1][f"shown/{name}"] for name in told} == pytest.approx(told, rel=1e-5)


def test_watchers_are_told_at_every_interval(tmp_path):
    told = []
    watch = [lambda numbers, step: told.append((step, {*numbers}))]
    train(compression("vq"), images(), run(tmp_path, show_every=2, watch=watch))
    assert [step for step, names in told if {"shown/psnr", "shown/perplexity"} <= names] == [2, 4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16, 32])
def test_every_factor_trains(tmp_path, kind, factor):
    torch.manual_seed(3)
    side = max(16, 2 * factor)
    options = {"base_channels": 32, "num_res_blocks": 1, "resolution": side, "channels": 4}
    mult = (1,) * factor.bit_length()
    if kind == "kl":
        stage, loss = KL(channel_mult=mult, **options), FirstStageLoss(None, KLWeight())
    else:
        stage, loss = VQ(codebook_size=8, channel_mult=mult, **options), FirstStageLoss(None, CodebookWeight())
    assert stage.factor == factor
    before = {name: weight.detach().clone() for name, weight in stage.named_parameters()}
    pictures = [{"target": nn.functional.interpolate(r["target"][None], size=side)[0]} for r in images(4)]
    adversary = Adversary(PatchGAN(base_channels=4, layers=1))
    trainee = Compression(stage, loss, adversary, [pictures[0]["target"]])
    train(trainee, pictures, run(tmp_path, steps=1, batch=2, optimizer=AdamW(weight_decay=0.0)))
    after = load_first_stage(tmp_path / "model.safetensors")
    z = after.encode(trainee.shown)
    assert z.shape == (1, 4, side // factor, side // factor)
    assert after.decode(z).shape == (1, 3, side, side)
    moved = [name for name, weight in after.named_parameters() if not torch.equal(weight, before[name])]
    assert any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("decoder.") for name in moved)


def test_the_discriminator_is_untouched_before_its_start(tmp_path):
    fresh, trainee = compression("kl"), compression("kl")
    train(trainee, images(), run(tmp_path, steps=2, optimizer=AdamW(weight_decay=0.5)))
    before, after = fresh.phases["discriminator"], trainee.phases["discriminator"]
    for name, weight in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], weight), name


def test_a_run_goes_on_to_the_same_bits(finished, tmp_path):
    kind, _, out = finished
    train(compression(kind), images(), run(tmp_path, steps=3))
    train(compression(kind), images(), run(tmp_path))
    whole, parts = load_file(out / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_reconstructions_improve(tmp_path):
    trainee = compression("kl", start=1000)
    before = trainee.measured(trainee.shown)[1]
    train(trainee, images(), run(tmp_path, steps=25, optimizer=AdamW((0.5, 0.9)), rate=lambda step: 2e-3, clip=None))
    after = trainee.measured(trainee.shown)[1]
    assert after["psnr"] > before["psnr"] + 1.5
    assert after["fit"] < before["fit"]
    losses = [line["autoencoder/loss"] for line in read_log(tmp_path / "log.jsonl") if "autoencoder/loss" in line]
    assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """What two processes left."""
    out = tmp_path_factory.mktemp("two")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(TESTS / "first_stage_job.py"), str(out)]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert job.returncode == 0, job.stderr
    return out


@pytest.mark.parametrize("name", SPREADS)
def test_two_processes_train_what_one_trains(finished, spread, name):
    kind, _, out = finished
    one, two = (load_file(folder / "model.safetensors") for folder in (out, spread / f"{kind}-{name}"))
    start = compression(kind).stage.state_dict()
    learned = torch.cat([(one[key] - start[key]).flatten() for key in one])
    apart = torch.cat([(one[key] - two[key]).flatten() for key in one])
    # Most of it is the rounding of weights; a code that is nearest by less than that may be another one.
    assert float(apart.norm()) <= {"kl": 1e-5, "vq": 1e-2}[kind] * float(learned.norm())
    for alone, together in zip(shown(out), shown(spread / f"{kind}-{name}"), strict=True):
        assert together == pytest.approx(alone, rel={"kl": 1e-3, "vq": 0.2}[kind])


def test_the_scale_comes_back(tmp_path):
    stage = KL(base_channels=32, num_res_blocks=1, channel_mult=(1,), scale=0.5)
    stage.scale.fill_(0.18215)
    read = load_first_stage(save_first_stage(stage, tmp_path / "stage.safetensors"))
    assert torch.equal(read.scale, stage.scale)
    assert read.channel_mult == (1,)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_first_stage(tmp_path / "none")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="does not say which first stage it holds"):
        load_first_stage(tmp_path / "other")
    (tmp_path / "bytes").write_bytes(b"no such format")
    with pytest.raises(CheckpointError, match="is no first stage that save_first_stage wrote"):
        load_first_stage(tmp_path / "bytes")
    save_file({"x": torch.zeros(1)}, tmp_path / "broken", {"first_stage": "{]"})
    with pytest.raises(CheckpointError, match="is no first stage that save_first_stage wrote"):
        load_first_stage(tmp_path / "broken")
    stage = KL(base_channels=32, num_res_blocks=1, channel_mult=(1,))
    save_first_stage(stage, tmp_path / "whole")
    with safe_open(tmp_path / "whole", "pt") as file:
        said = file.metadata()
    save_file({"encoder.conv_in.bias": torch.zeros(32)}, tmp_path / "part", said)
    with pytest.raises(CheckpointError, match="does not hold the model of first stage 'kl'"):
        load_first_stage(tmp_path / "part")


def test_a_stage_that_cannot_be_built_again_is_not_written(tmp_path):
    with pytest.raises(CompositionError, match="Linear"):
        save_first_stage(nn.Linear(1, 1), tmp_path / "stage")


def test_records_without_a_target_are_named():
    with pytest.raises(BatchError, match=r"record 1 of a batch has no 'target'.*it has \['image'\]"):
        compression("kl").prepare([{"target": np.zeros((16, 16, 3))}, {"image": None}], (0, 1))
