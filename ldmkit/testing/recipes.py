"""Checks of recipes: plain data that composes, and that the composed model writes down again."""

from __future__ import annotations

import json

import torch

from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Recipe
from ldmkit.testing.building import layout
from ldmkit.testing.case import Case
from ldmkit.testing.check import Check, check, require
from ldmkit.testing.surroundings import restored


@check("runs")
def survives_json(case: Case) -> None:
    """Through JSON it comes back equal."""
    recipe: Recipe = case.component()
    back = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    require(back == recipe, f"through JSON it becomes {back}")


@check("runs")
def composes(case: Case) -> None:
    """Its parts are installed and fit each other: it composes, on the device ``meta``."""
    _composed(case.component())


@check("composes")
def its_model_writes_it_down_again(case: Case) -> None:
    """The composed model's own recipe has the same sources and rules, and composes the same model again."""
    recipe: Recipe = case.component()
    model = _composed(recipe)
    written = model.recipe()
    require(list(written.sources) == list(recipe.sources), f"its sources are written down as {list(written.sources)}")
    for name, source in recipe.sources.items():
        again = written.sources[name]
        kept = (again.drop, again.guided) == (source.drop, source.guided)
        require(kept, f"the source '{name}' is written down as {again}")
    require(written.prediction == recipe.prediction, f"the prediction is written down as '{written.prediction}'")
    other = _composed(written)
    require(other.recipe() == written, "what the model writes down composes a model that writes down something else")
    require(layout(other) == layout(model), "what the model writes down composes other tensors")


def _composed(recipe: Recipe) -> LatentDiffusion:
    with restored(0), torch.device("meta"):
        return compose(recipe)


CHECKS: tuple[Check, ...] = (survives_json, composes, its_model_writes_it_down_again)
