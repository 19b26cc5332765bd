"""The bundled first stages of photographs: what their record claims, and how they begin and are trained."""

import json
import socket

import pytest
import torch
from safetensors import safe_open

from ldmkit.composition import part_of
from ldmkit.demo import train_photos
from ldmkit.demo.evaluate_photos import coding, scores, whole_psnr
from ldmkit.demo.photos import (
    HELD_OUT,
    NAMES,
    RECORD,
    STAGES,
    TRAINING,
    Recolour,
    bicubic,
    bundled,
    crops,
    file,
    photograph,
)
from ldmkit.demo.train_photos import begun, centred, centres, main
from ldmkit.first_stages import KL, VQ
from ldmkit.registry import build_part
from ldmkit.training.compression import load_first_stage

SMALLEST = "chelsea"


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def stages():
    return {name: bundled(name) for name in NAMES}


def test_no_photograph_is_on_both_sides_of_the_split():
    assert not TRAINING.keys() & HELD_OUT.keys()
    pictures = {name: photograph(name).mean((1, 2)) for name in (*TRAINING, *HELD_OUT)}
    assert torch.pdist(torch.stack(list(pictures.values()))).min() > 0.01


def test_photographs_come_from_installed_packages_alone(monkeypatch):
    class Closed(socket.socket):
        def __init__(self, *args, **kwargs):
            raise OSError("no network")

    monkeypatch.setattr(socket, "socket", Closed)
    photograph.cache_clear()
    for name in (*TRAINING, *HELD_OUT):
        image = photograph(name)
        assert image.shape[0] == 3
        assert float(image.min()) >= 0
        assert 0.9 < float(image.max()) <= 1


def test_crops_cover_a_photograph_once():
    image = torch.arange(3 * 9 * 14).view(3, 9, 14)
    found = crops(image, 4)
    assert found.shape == (6, 3, 4, 4)
    assert torch.equal(found[4], image[:, 4:8, 4:8])


@pytest.mark.parametrize("name", NAMES)
def test_the_record_says_how_each_was_made_and_matches_its_file(name, record):
    trained = record["first_stages"][name]["trained"]
    with safe_open(file(name), "pt") as opened:
        assert trained == json.loads(opened.metadata()["notes"])
    assert {"seed", "data", "command", "steps", "torch"} <= trained.keys()
    assert trained["processor_seconds"] < 3600
    assert file(name).stat().st_size < 4e6


def test_the_record_is_of_the_split():
    record = json.loads(RECORD.read_text())
    assert record["held_out"].keys() == HELD_OUT.keys()
    assert record["training"].keys() == TRAINING.keys()


def test_both_beat_bicubic_on_every_held_out_photograph(record):
    margin = record["margin"]["held_out"]
    assert margin["kl"]["mean_db"] >= 1.7
    assert margin["kl"]["least_db"] >= 1.5
    assert margin["kl-bytes"]["least_db"] >= 1.5
    assert margin["vq"]["mean_db"] >= 1.1
    assert margin["vq"]["least_db"] >= 0.4
    assert margin["kl-begun"]["least_db"] < 0


def test_the_recorded_numbers_hold_today(record, stages):
    now = scores(SMALLEST, {name: coding(stage) for name, stage in stages.items()})
    for name in ("bicubic", *NAMES):
        for number in ("psnr_db", "psnr_of_crops_db", "ssim"):
            assert now[name][number] == pytest.approx(record["held_out"][SMALLEST][name][number], abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_what_the_composition_says(name, stages):
    stage = load_first_stage(file(name))
    assert type(stage) is {"kl": KL, "vq": VQ}[name]
    kept, said = part_of("first-stage", stage), part_of("first-stage", build_part("first-stage", STAGES[name]))
    assert kept.name == said.name == name
    assert {key: value for key, value in kept.options.items() if key != "scale"} == said.options
    with torch.no_grad():
        z = stages[name].encode(crops(photograph(SMALLEST)) * 2 - 1)
    assert 0.5 < float(z.std()) < 2


def test_kl_begins_as_the_mean_colour_of_blocks():
    stage = begun("kl").eval()
    image = crops(photograph(SMALLEST))[:4]
    blocks = torch.nn.functional.avg_pool2d(image, 4)
    with torch.no_grad():
        z = stage.encode(image * 2 - 1)
        again = stage.decode(z) / 2 + 0.5
    torch.testing.assert_close(z / 2 + 0.5, blocks, atol=2e-3, rtol=0)
    torch.testing.assert_close(again, torch.nn.functional.interpolate(blocks, scale_factor=4), atol=5e-3, rtol=0)


def test_vq_begins_as_kl_with_its_latents_rounded_to_codes(stages, monkeypatch):
    monkeypatch.setattr(train_photos, "MEASURED", 160)
    stage = begun("vq").eval()
    image = crops(photograph(SMALLEST))[:4] * 2 - 1
    with torch.no_grad():
        z = stage.encode(image)
        torch.testing.assert_close(z, stages["kl"].encode(image), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(stage.decode_unquantized(z), stages["kl"].decode(z), atol=1e-3, rtol=1e-3)
        assert float((stage.nearest_code(z) - z).square().mean().sqrt()) < 0.3


@pytest.mark.parametrize("start", [None, file("kl")])
def test_a_run_goes_from_photographs_to_a_file(start, tmp_path, monkeypatch):
    monkeypatch.setattr(train_photos, "shown", list)
    monkeypatch.setitem(train_photos.RATES, "kl", 1e-6)  # one step, and no time to warm up
    monkeypatch.setattr(train_photos, "MEASURED", 8)
    assert main(["kl", "--steps", "1", "--out", str(tmp_path), *(["--start", str(start)] if start else [])]) == 0
    stage = load_first_stage(tmp_path / "photos-kl.safetensors").float()
    image = crops(photograph(SMALLEST))[:4]
    assert whole_psnr(image, coding(stage)(image)) > 25


def test_a_gradient_loses_its_mean_over_each_filter_and_nothing_else():
    conv = torch.nn.Conv2d(3, 2, 3)
    conv.weight.grad, conv.bias.grad = torch.rand(2, 3, 3, 3), torch.rand(2)
    kept = conv.weight.grad.clone(), conv.bias.grad.clone()
    centred(list(conv.parameters())).step()
    torch.testing.assert_close(conv.weight.grad, kept[0] - kept[0].mean((1, 2, 3), keepdim=True))
    assert torch.equal(conv.bias.grad, kept[1])


def test_colours_are_exchanged_and_not_changed():
    image = torch.rand(3, 4, 5)
    found = [Recolour(1.0)({"target": image}, seed)["target"] for seed in range(40)]
    assert len({tuple(one.flatten().tolist()) for one in found}) == 6
    assert all(torch.equal(one.sort(0).values, image.sort(0).values) for one in found)
    assert all(torch.equal(Recolour(0.0)({"target": image}, seed)["target"], image) for seed in range(4))


def test_the_baseline_keeps_as_many_numbers_and_is_worse_the_fewer_it_keeps():
    image = photograph(SMALLEST)[:, :128, :128]
    assert whole_psnr(image[None], bicubic(image, 2)[None]) > whole_psnr(image[None], bicubic(image, 4)[None]) > 25
    stage = bundled("kl")
    assert stage.channels * 4**2 == 3 * stage.factor**2


def test_centres_are_the_means_of_clusters():
    places = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = (places[:, None] + 0.1 * torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0))).flatten(0, 1)
    found = centres(rows, 12)
    assert torch.cdist(rows, found).min(dim=1).values.max() < 0.4
    assert torch.cdist(rows, found).min(dim=1).values.mean() < torch.cdist(rows, rows[::15]).min(dim=1).values.mean()
