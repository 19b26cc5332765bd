"""The bundled models of shape scenes: what their record claims, how large they are, that their training goes on."""

import json
from pathlib import Path

import pytest
import torch

import ldmkit
from ldmkit.demo.evaluate_shapes import evaluated
from ldmkit.demo.shapes import FIGURES, NAMES, RECORD, file
from ldmkit.demo.train_shapes import trained
from ldmkit.weights.native import read_recipe

LOWER_IS_BETTER = ("binding_error", "low_res_error", "known_region_error")
BUNDLED = Path(ldmkit.__file__).parent / "demo"


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_of_the_file_that_is_there(name, record):
    assert record[name]["trained"] == dict(read_recipe(file(name)).notes)
    assert {"seed", "data", "command", "steps", "seconds"} <= record[name]["trained"].keys()
    assert record[name]["split"] == "test"


@pytest.mark.parametrize("name", NAMES)
def test_every_model_heeds_its_condition(name, record):
    first = FIGURES[name][0]
    one = {part: record[name][part][first] for part in ("measured", "chance", "ceiling")}
    assert one["measured"] > one["chance"] + 0.1 * (one["ceiling"] - one["chance"])


def test_figures_stand_between_chance_and_ceiling(record):
    for name, figures in FIGURES.items():
        for figure in figures:
            sign = -1 if figure in LOWER_IS_BETTER else 1
            assert sign * record[name]["ceiling"][figure] >= sign * record[name]["chance"][figure], (name, figure)


def test_known_pixels_come_back_to_the_bit(record):
    assert record["inpainting"]["measured"]["known_region_error"] == 0


def test_files_are_small_one_by_one_and_together():
    sizes = {path.name: path.stat().st_size for path in BUNDLED.glob("*.safetensors")}
    assert all(size <= 5e6 for size in sizes.values()), sizes
    assert sum(sizes.values()) <= 30e6


def test_a_figure_of_the_record_is_found_again(record):
    """A part of the held-out scenes, enough to tell a model from chance."""
    again = evaluated("super-resolution", 16)
    assert again["measured"]["psnr_db"] == pytest.approx(record["super-resolution"]["measured"]["psnr_db"], abs=1.5)


def test_the_script_trains_and_goes_on(tmp_path):
    path = trained("semantic", tmp_path, first_stage_steps=2, steps=2, scenes=128)
    assert ldmkit.load(path).backbone.channels == 4
    before = read_recipe(path).notes
    again = trained("semantic", tmp_path, first_stage_steps=2, steps=2, scenes=128)
    assert read_recipe(again).notes == before
    assert {p.dtype for p in ldmkit.load(path).parameters()} == {torch.bfloat16}


def test_a_bundled_model_is_trained_further(tmp_path):
    path = trained("semantic", tmp_path, first_stage_steps=2, steps=2, scenes=128, start=file("semantic"))
    before, after = (dict(ldmkit.load(one).named_parameters()) for one in (file("semantic"), path))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("first_stage."))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("denoiser."))
    assert "--start" in read_recipe(path).notes["command"]
