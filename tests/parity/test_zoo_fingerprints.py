"""A published checkpoint is recognised from its keys and shapes; models that differ in none are named together."""

import json
from importlib.resources import files

import pytest

from ldmkit.recipes import FIRST_STAGES
from ldmkit.recipes.fingerprints import TABLE, candidates, fingerprint, first_stage_candidates
from parity.fingerprints import table
from parity.test_zoo import MODELS, ZOO

TWINS = [
    ["celebahq", "ffhq", "lsun-beds"],
    ["semantic-synthesis256", "semantic-synthesis512"],
    ["sd-2-base", "sd-2-v"],
]
FIRST_CONV = "model.diffusion_model.input_blocks.0.0.weight"


def together(name):
    return next((twins for twins in TWINS if name in twins), [name])


def test_the_table_is_that_of_the_recipes():
    kept = json.loads(files("ldmkit.recipes").joinpath(TABLE).read_text(encoding="utf-8"))
    assert kept == table(), "run `python tests/parity/fingerprints.py`"


@pytest.mark.parametrize("entry", MODELS)
def test_every_published_model_is_recognised(entry):
    assert candidates(ZOO[entry]) == together(MODELS[entry])


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_every_published_first_stage_is_recognised(name):
    published = ZOO[f"first_stage/{name}"]
    assert first_stage_candidates(published) == [name]
    assert first_stage_candidates({**published, "loss.logvar": (), "loss.discriminator.main.0.weight": (1,)}) == [name]
    assert first_stage_candidates({f"first_stage_model.{key}": shape for key, shape in published.items()}) == [name]
    assert candidates(published) == []


def test_a_network_alone_is_recognised():
    network = {key: shape for key, shape in ZOO["sd/sd_v1"].items() if key.startswith("model.")}
    assert candidates(network) == ["sd-1"]


def test_a_network_beside_another_first_stage_is_recognised():
    faces = ZOO["ldm/celeba256"]
    assert candidates({**faces, "first_stage_model.quantize.embedding.weight": (16, 3)}) == together("celebahq")


@pytest.mark.parametrize(
    "change",
    [
        lambda shapes: shapes.pop(FIRST_CONV),
        lambda shapes: shapes.update({"model.diffusion_model.surprise.weight": (1,)}),
    ],
)
def test_a_damaged_file_is_named_by_what_it_resembles(change):
    shapes = dict(ZOO["ldm/bsr_sr"])
    change(shapes)
    assert candidates(shapes) == ["bsr-sr"]


def test_another_model_has_no_candidates():
    halves = {key: tuple(side // 2 for side in shape) for key, shape in ZOO["sd/sd_v1"].items()}
    assert candidates(halves) == first_stage_candidates(halves) == []
    assert candidates({}) == first_stage_candidates({}) == []


def test_order_makes_no_difference_and_every_shape_does():
    shapes = {"a": (1, 2), "b": (3,)}
    assert fingerprint(shapes) == fingerprint(dict(reversed(shapes.items())))
    assert fingerprint(shapes).resemblance(fingerprint(shapes)) == 1
    for other in ({"a": (1, 2)}, {"a": (2, 1), "b": (3,)}, {"a": (1, 2), "c": (3,)}):
        assert fingerprint(shapes).resemblance(fingerprint(other)) < 1


def test_resemblance_estimates_the_share_of_common_tensors():
    def numbered(numbers):
        return fingerprint({f"tensor {n}": (n,) for n in numbers})

    assert numbered(range(600)).resemblance(numbered(range(600, 1200))) == 0
    assert numbered(range(900)).resemblance(numbered(range(300, 1200))) == pytest.approx(0.5, abs=0.25)
    assert numbered(range(1000)).resemblance(numbered(range(1, 1000))) > 0.9
