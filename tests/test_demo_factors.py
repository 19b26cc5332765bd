"""The comparison of downsampling factors: equal where it says so, resumable, and shown as it was recorded."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from ldmkit.data.scenes import CLASSES, HELD_OUT
from ldmkit.demo import factors
from ldmkit.demo.factors import RECORD, Plan, check_equal, compare, folder, labels, recipe, training_flops
from ldmkit.demo.factors_plot import COLOURS, Axis, plot, table
from ldmkit.demo.factors_scores import SHOWN, cells, exact, fd_cells, frechet, objects, scores
from ldmkit.model import compose
from ldmkit.training.loop import train

OWN = factors.NETWORKS
PAGE = Path(__file__).parents[1] / "docs" / "train" / "factors.md"
SMALL = Plan(
    factors=(1, 2),
    scenes=12,
    first_stage_steps=2,
    first_stage_batch=2,
    checkpoints=(1, 2),
    batch=2,
    samples=4,
    sampler_steps=(1, 2),
    shown_steps=2,
    reference=8,
)
TIMES = {"training_seconds", "images_per_core_second", "core_seconds"}
SCORES = {"as_asked", "residual", "fd_cells"}


@pytest.fixture(autouse=True, scope="module")
def small_networks():
    """The comparison with networks of 0.2 million parameters; those of the record are in ``OWN``."""
    with pytest.MonkeyPatch.context() as patch:
        one = {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
        patch.setattr(factors, "NETWORKS", {1: one, 2: one})
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("factors")
    return out, compare(SMALL, out)


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def real():
    return objects(400, "train", 0)


def counted(data):
    """A record without what a clock measured."""
    if isinstance(data, dict):
        return {key: counted(value) for key, value in data.items() if key not in TIMES}
    return [counted(one) for one in data] if isinstance(data, list) else data


def spread(values):
    return max(values) / min(values) - 1


def test_the_networks_have_equal_parameters(monkeypatch):
    monkeypatch.setattr(factors, "NETWORKS", OWN)
    sizes = [sum(p.numel() for p in compose(recipe(factor)).denoiser.parameters()) for factor in OWN]
    assert spread(sizes) < 0.05


def test_the_record_is_complete_and_of_equal_compute(small):
    _, found = small
    assert [one["factor"] for one in found["factors"]] == [1, 2]
    assert spread([one["parameters"] for one in found["factors"]]) < 0.05
    assert spread([one["flops_per_sample"] * one["batch"] * one["steps"] for one in found["factors"]]) < 0.05
    for one in found["factors"]:
        assert [row["step"] for row in one["curve"]] == [1, 2]
        assert [row["steps"] for row in one["sampling"]] == [1, 2]
        assert all(row.keys() >= SCORES for row in [*one["curve"], *one["sampling"], one["first_stage"]["ceiling"]])
        assert one["flops_per_sample"] == training_flops(compose(recipe(one["factor"])))
    assert found["factors"][0]["first_stage"]["ceiling"]["exact"] == 1  # the image itself
    assert found["real"].keys() == SCORES
    json.dumps(found)


def test_a_comparison_that_was_stopped_anywhere_goes_on_to_the_same_record(small, tmp_path, monkeypatch):
    stops = iter((False, True, False, True, False, False, True))

    def unsteady(*arguments):
        path = train(*arguments)
        if next(stops, False):
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(factors, "train", unsteady)
    stopped = 0
    while True:
        try:
            found = compare(SMALL, tmp_path)
            break
        except KeyboardInterrupt:
            stopped += 1
    assert stopped == 3
    assert counted(found) == counted(small[1])


def test_what_was_measured_is_not_measured_again(small, monkeypatch):
    out, found = small
    monkeypatch.setattr(factors, "sampled", None)
    assert compare(SMALL, out) == found


def test_a_folder_of_another_plan_is_refused(small):
    with pytest.raises(ValueError, match="another plan, see plan"):
        compare(replace(SMALL, batch=3), small[0])


def test_unequal_parts_are_refused():
    check_equal("parameters", {1: 100, 2: 104})
    with pytest.raises(ValueError, match="parameters of the factors differ by more than 5%"):
        check_equal("parameters", {1: 100, 2: 106})


def test_every_class_that_training_shows_is_asked_for_equally():
    assert len(SHOWN) == len(CLASSES) - len(HELD_OUT)
    assert {one.scenes[0].items[0].label for one in [objects(1, "train", seed) for seed in range(20)]} <= set(SHOWN)
    asked = labels(2 * len(SHOWN))
    assert all(asked.count(k) == 2 for k in SHOWN)


def test_real_objects_score_perfectly_and_others_do_not(real):
    some, label, scenes = real.image[:50], real.label[:50], real.scenes[:50]
    other = some.roll(1, dims=0)
    mine, wrong = scores(some, label, some), scores(other, label, some)
    assert mine == {"as_asked": 1, "residual": 0, "fd_cells": pytest.approx(0, abs=1e-3)}
    assert wrong["as_asked"] < 0.3
    assert exact(some, scenes) == 1
    assert exact(other, scenes) < 0.1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: (x + 0.05 * torch.randn_like(x)).clamp(0, 1), id="noise"),
        pytest.param(lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1), id="blur"),
        pytest.param(lambda x: x.flip(1), id="colours"),
        pytest.param(lambda x: x[:1].expand_as(x), id="one image"),
    ],
)
def test_the_distance_sees(change, real):
    held_out = objects(400, "train", 1).image
    assert fd_cells(change(held_out), real.image) > 2 * fd_cells(held_out, real.image)


def test_the_distance_of_gaussians_is_the_known_one():
    rows = torch.randn(500, 3, dtype=torch.float64)
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet(rows, rows + 2) == pytest.approx(12)
    deviations = rows.T.cov().trace()
    assert frechet(rows, 3 * rows) == pytest.approx(float(4 * deviations + (2 * rows.mean(dim=0)).square().sum()))
    assert cells(torch.rand(2, 3, 32, 32)).shape == (2, 64)


def test_an_axis_is_what_its_marks_say():
    log, even = Axis(1, 100, True, ""), Axis(0, 1, False, "")
    assert log.share(10) == pytest.approx(0.5)
    assert log.marks() == [1, 2, 5, 10, 20, 50, 100]
    assert even.share(0.25) == 0.25
    assert even.share(2) == 1


def test_the_plot_shows_what_the_record_says(small):
    out, found = small
    pictures = {factor: folder(out, factor) / "samples.png" for factor in SMALL.factors}
    bare, whole = plot(found), plot(found, pictures)
    assert all(path.exists() for path in pictures.values())
    assert whole.height > bare.height
    other = json.loads(json.dumps(found))
    other["factors"][1]["curve"][0]["as_asked"] = 0.5
    assert plot(other).tobytes() != bare.tobytes()


def test_the_kept_record_is_of_the_plan_that_the_script_runs(record):
    assert record["plan"] == json.loads(json.dumps(vars(Plan())))
    assert [one["factor"] for one in record["factors"]] == [1, 2, 4, 8]
    assert spread([one["parameters"] for one in record["factors"]]) < 0.05
    assert spread([one["flops_per_sample"] * one["batch"] * one["steps"] for one in record["factors"]]) < 0.05
    assert all(one["network"] == json.loads(json.dumps(OWN[one["factor"]])) for one in record["factors"])


def test_the_page_shows_the_record(record):
    assert table(record) in PAGE.read_text(encoding="utf-8")


def test_the_curves_of_the_picture_are_the_record(record):
    drawn = plot(record)
    with Image.open(PAGE.with_name("factors.png")) as picture:
        kept = np.asarray(picture.convert("RGB"))[: drawn.height - 20]
    new = np.asarray(drawn)[: drawn.height - 20]
    for colour in COLOURS.values():
        mine, theirs = ((pixels == ImageColor.getrgb(colour)).all(axis=2) for pixels in (new, kept))
        assert (mine ^ theirs).sum() < 0.01 * mine.sum()
