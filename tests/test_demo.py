"""The bundled model: what its record claims, what it draws, and that its training can stop and go on."""

import json

import pytest
import torch
from torch import nn

from ldmkit.demo import CLASSES, DIGITS, RECORD, SIZE
from ldmkit.demo.digits import batch_of, jittered, load_digits
from ldmkit.demo.sheet import contact_sheet, main, sample_rows
from ldmkit.demo.train import run
from ldmkit.guidance import CFG
from ldmkit.noise import Noise
from ldmkit.pipelines import pipeline
from ldmkit.process import trailing
from ldmkit.training import EMA
from ldmkit.weights.native import load, read_recipe


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def model():
    return load(DIGITS)


def test_the_split_is_fixed_and_disjoint():
    train, test = load_digits()
    assert (len(train), len(test)) == (1442, 355)
    assert torch.bincount(test.label, minlength=CLASSES).min() >= 34
    assert torch.cdist(test.image.flatten(1), train.image.flatten(1)).min() > 0
    assert float(train.image.min()) == -1
    assert float(train.image.max()) == 1


def test_the_record_says_how_it_was_made_and_matches_the_file(record):
    assert record["trained"] == dict(read_recipe(DIGITS).notes)
    assert {"seed", "data", "command", "steps"} <= record["trained"].keys()
    assert record["samples"]["ddim"] >= 2000
    assert DIGITS.stat().st_size <= 5e6


def test_samples_read_as_asked_within_two_points_of_real_digits(record):
    ceiling = record["class_share"]["real test digits"]
    for sampler in ("ddim", "ddpm", "plms"):
        assert record["class_share"][sampler] >= ceiling - 0.02


def test_samples_are_not_copies(record):
    copies = record["copies"]
    assert copies["share_nearer_to_training_digits"] < 0.6
    assert copies["median_distance_to_training_digits"] > 0.8 * copies["median_distance_held_out_to_training"]


def test_the_first_stage_reconstructs_held_out_digits_as_well_as_recorded(model, record):
    _, test = load_digits()
    again = model.decode(model.encode(test.image)).clamp(-1, 1)
    error = float((again - test.image).abs().mean()) / 2
    assert error == pytest.approx(record["reconstruction"]["mean_absolute_error"], rel=0.02)


def test_what_is_drawn_today_reads_as_the_nearest_mean_digit(model):
    """A cruder reader than the record's, without scikit-learn's classifier: the nearest class mean of real digits."""
    train, _ = load_digits()
    means = torch.stack([train.image[train.label == digit].mean(0) for digit in range(CLASSES)]).flatten(1)
    label = torch.arange(60) % CLASSES
    z = model.sample({"label": label}, size=(SIZE, SIZE), seed=5, levels=trailing(model.process, 15), guidance=CFG(2.0))
    read = torch.cdist(model.decode(z).flatten(1), means).argmin(1)
    assert float((read == label).float().mean()) > 0.8


def test_the_sheet_shows_every_class_of_every_row(capsys):
    pipe = pipeline("class-conditional", DIGITS)
    rows = sample_rows(pipe, "ddim", 2, seed=0)
    sheet = contact_sheet(rows, "title")
    assert len(rows) == 2
    assert all(len(images) == CLASSES for _, images in rows)
    assert sheet.width > CLASSES * SIZE
    assert "ddim" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_writes_its_sheet(tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert str(tmp_path / "digits.png") in capsys.readouterr().out


def test_a_batch_is_a_function_of_seed_and_step_and_an_epoch_sees_everything():
    train, _ = load_digits()
    a, b = batch_of(train, 3, 17, 32), batch_of(train, 3, 17, 32)
    assert torch.equal(a[0], b[0])
    assert a[2] == b[2]
    assert a[2] != batch_of(train, 4, 17, 32)[2]
    seen = torch.cat([batch_of(train, 3, step, len(train) // 2)[1] for step in range(2)])
    assert torch.equal(torch.bincount(seen), torch.bincount(train.label))


def test_jitter_moves_a_digit_a_little_and_by_its_own_seed():
    train, _ = load_digits()
    image = train.image[:4]
    moved = jittered(image, Noise((1, 2, 3, 4)))
    assert torch.equal(moved[2:], jittered(image[2:], Noise((3, 4))))
    assert 0.01 < float((moved - image).abs().mean()) < 0.5
    assert float(moved.min()) >= -1


def test_a_run_that_was_stopped_goes_on_bit_by_bit(tmp_path):
    def train(path, *counts):
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        for steps in counts:
            optimizer = torch.optim.AdamW(module.parameters())
            batches = torch.randn(1000, 8, 4, generator=torch.Generator().manual_seed(0))
            loss_of = lambda step, batches=batches, module=module: module(batches[step]).square().mean()  # noqa: E731
            run("test", module, optimizer, EMA(module), loss_of, steps, lambda step: 1e-2, path)
        return module.state_dict()

    whole = train(tmp_path / "a.pt", 1000)
    parts = train(tmp_path / "b.pt", 500, 1000)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
