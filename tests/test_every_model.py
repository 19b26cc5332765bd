"""Every published model: a file as its publisher wrote it becomes the model, and its task makes images with it.

At small widths here; at the published ones in the slow tests, a process each, where there is memory for it.
"""

import pytest
import torch
from benchmarks import every_model
from benchmarks.measure import Setting
from benchmarks.original_files import narrow, read_words, sampled, write

import ldmkit
from ldmkit.recipes import PUBLISHED
from ldmkit.registry import names


def recipe_of(name):
    recipe = ldmkit.recipe(name)
    absent = {part.name for kind, part in recipe.parts() if kind == "conditioner"} - set(names("conditioner"))
    if absent:
        pytest.skip(f"{sorted(absent)} come with plug-ins that are not installed")
    return recipe


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_of_every_published_model_makes_images_of_its_task(name, tmp_path):
    recipe = narrow(recipe_of(name))
    write(name, recipe, tmp_path / "model.ckpt")
    model = ldmkit.import_checkpoint(tmp_path / "model.ckpt", recipe=recipe)
    read_words(recipe, model, tmp_path)
    side = 2 * model.multiple
    made = sampled(recipe, model, side)
    assert made.images.shape == (1, 3, side, side)
    assert made.latents.isfinite().all()
    assert made.images.std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_runs_at_its_own_size(name):
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    (table,) = every_model.run(Setting(device, dtype, opponent=False), [name])
    if left_out := [note for note in table.notes if "was left out" in note]:
        pytest.skip(left_out[0])
    figures = dict(zip(table.columns, table.rows[name], strict=True))
    assert figures["image"] == recipe_of(name).notes["sampling"]["height"]
