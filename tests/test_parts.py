"""Parts are plain data: they copy, normalise, compare and go through JSON unchanged."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naming import named

import ldmkit
from ldmkit.parts import Part, Recipe, Source

NESTED = Part(
    "unet@ldmkit",
    {
        "width": 32,
        "scale": 0.5,
        "mult": (1, 2, (3, None)),
        "flags": {"norm": True, "by-level": ["a", "b"]},
        "inner": Part("kl", {"deep": [Part("vq"), {"x": Part("pixel", kind="first-stage")}]}, kind="first-stage"),
    },
)


def test_a_part_equals_what_its_json_gives_back():
    assert Part.from_json(json.loads(json.dumps(NESTED.to_json()))) == NESTED


def test_the_json_of_a_part_is_plain():
    part = Part("cfg", {"scale": 3.0, "inner": Part("none", kind="guidance")})
    nested = {"part": "none", "options": {}, "kind": "guidance"}
    assert part.to_json() == {"part": "cfg", "options": {"scale": 3.0, "inner": nested}}


def test_options_and_kind_may_be_left_out_of_the_json():
    assert Part.from_json({"part": "kl"}) == Part("kl")


def test_tuples_become_lists():
    assert Part("kl", {"mult": (1, (2,))}) == Part("kl", {"mult": [1, [2]]})


def test_numbers_of_numpy_become_plain():
    assert type(Part("kl", {"scale": np.float64(0.5)}).options["scale"]) is float


def test_later_changes_of_the_given_options_do_not_reach_the_part():
    options: dict[str, Any] = {"mult": [1, 2]}
    part = Part("kl", options)
    options["mult"].append(3)
    options["width"] = 4
    assert part == Part("kl", {"mult": [1, 2]})


@pytest.mark.parametrize("other", [Part("kl", {"a": 2}), Part("vq", {"a": 1}), Part("kl", {"a": 1}, kind="backbone")])
def test_parts_differ_by_name_options_and_kind(other: Part):
    assert Part("kl", {"a": 1}) != other


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_floats_are_refused_with_their_path(value: float):
    with pytest.raises(ValueError, match=r"part 'kl': blocks\[1\]\.scale is (nan|-?inf)"):
        Part("kl", {"blocks": [{}, {"scale": value}]})


@pytest.mark.parametrize("value", [np.zeros(2), {1, 2}, b"x", Path("x"), object(), np.int64(3)], ids=named)
def test_other_types_are_refused_with_their_path(value: object):
    with pytest.raises(TypeError, match=rf"part 'kl': mult\[0\] is {type(value).__name__}"):
        Part("kl", {"mult": [value]})


def test_keys_are_strings():
    with pytest.raises(TypeError, match=r"part 'kl': by_level has the key 1"):
        Part("kl", {"by_level": {1: 2}})


def test_a_mapping_that_would_read_as_a_part_is_refused():
    with pytest.raises(ValueError, match="key 'part'"):
        Part("kl", {"inner": {"part": "vq"}})


def test_a_cycle_is_refused():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested deeper than 32"):
        Part("kl", {"loop": loop})


def test_deep_json_is_refused():
    data: dict[str, Any] = {"part": "kl"}
    for _ in range(40):
        data = {"part": "kl", "options": {"inner": data}}
    with pytest.raises(ValueError, match="nested deeper than 32"):
        Part.from_json(data)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        "kl",
        {"part": ""},
        {"part": 3},
        {"part": "kl", "options": []},
        {"part": "kl", "kind": 3},
        {"part": "kl", "weights": "evil"},
        {"part": "kl", "options": {"inner": {"part": None}}},
        {"part": "kl", "options": {"x": math.nan}},
    ],
    ids=repr,
)
def test_data_that_is_no_part_is_refused(data: object):
    with pytest.raises(ValueError, match=r"part|given data"):
        Part.from_json(data)


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_part_needs_a_name(name: Any):
    with pytest.raises(ValueError, match="needs the name"):
        Part(name)


def test_options_are_a_mapping():
    with pytest.raises(TypeError, match="must be a mapping"):
        Part("kl", [("a", 1)])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ldmkit.names("recipe"))
def test_every_recipe_round_trips_through_json(name):
    recipe = ldmkit.build("recipe", name)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("name", ldmkit.names("recipe"))
def test_every_recipe_composes_and_says_itself_again(name):
    with torch.device("meta"):
        model = ldmkit.compose(ldmkit.build("recipe", name))
    assert {kind for kind, _ in model.recipe().parts()} == {kind for kind, _ in ldmkit.build("recipe", name).parts()}
    with torch.device("meta"):
        again = ldmkit.compose(model.recipe())
    assert again.recipe() == model.recipe()
    assert again.state_dict().keys() == model.state_dict().keys()


def test_the_order_of_sources_is_part_of_a_recipe():
    base = ldmkit.build("recipe", "digits")
    one, two = Source(Part("precomputed", {"key": "a"})), Source(Part("precomputed", {"key": "b"}))
    first, second = replace(base, sources={"z": one, "b": two}), replace(base, sources={"b": two, "z": one})
    assert first != second
    assert list(Recipe.from_json(json.loads(json.dumps(first.to_json()))).sources) == ["z", "b"]


def recipe_json():
    return ldmkit.build("recipe", "digits").to_json()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data.pop("process"), "a recipe has the keys"),
        (lambda data: data.update(code="print()"), "a recipe has the keys"),
        (lambda data: data.update(prediction=3), "prediction is a string"),
        (lambda data: data.update(backbone="unet"), "is no part"),
        (lambda data: data["sources"][0].pop("name"), "needs a 'name'"),
        (lambda data: data.update(sources={}), "sources are a list"),
        (lambda data: data.update(objective=[]), "are mappings"),
        (lambda data: data["sources"][0].pop("drop"), "a source needs"),
        (lambda data: data["sources"][0].update(guided="yes"), "a source needs"),
    ],
)
def test_a_malformed_recipe_is_refused(spoil, message):
    data = recipe_json()
    spoil(data)
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(data)
