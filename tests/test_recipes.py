"""The published models as data: complete notes, explicit heads, plain JSON, and no torch."""

import json
import subprocess
import sys

import pytest

import ldmkit
from ldmkit.builtin import TABLE
from ldmkit.errors import UnknownComponentError
from ldmkit.parts import Recipe
from ldmkit.recipes import FIRST_STAGES, PUBLISHED, first_stage
from ldmkit.recipes.first_stages import NOTES
from ldmkit.recipes.notes import KEYS
from ldmkit.registry import build_part

ONE_HEAD = {"cin256", "cin256-v2", "text2img256", "layout2img-openimages256"}
GUIDED = {name for name in PUBLISHED if ldmkit.recipe(name).notes["null"] is not None}


def options(name):
    return ldmkit.recipe(name).backbone.options


def test_every_built_in_recipe_is_published_or_bundled():
    assert set(TABLE["recipe"]) == {*PUBLISHED, "digits"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_survives_json(name):
    recipe = ldmkit.recipe(name)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("name", PUBLISHED)
def test_notes_are_complete(name):
    notes = ldmkit.recipe(name).notes
    assert notes.keys() == KEYS.keys()
    assert notes["ema"] in ("beside", "only")
    assert notes["source"].startswith("https://")
    assert all(notes[key] for key in ("published_as", "licence", "paper"))
    assert all("setting" in result and len(result) > 1 for result in notes["numbers"])
    assert all(remark.endswith(".") for remark in notes["remarks"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_task_is_one_of_ours(name):
    task = ldmkit.recipe(name).notes["task"]
    assert task in ldmkit.names("task")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sampling_defaults_can_be_used(name):
    said = ldmkit.recipe(name).notes["sampling"]
    assert said.keys() == {"sampler", "steps", "eta", "guidance_scale", "height", "width"}
    sampler = ldmkit.build("sampler", said["sampler"], eta=said["eta"])
    process = build_part("process", ldmkit.recipe(name).process)
    sampler.check(process.levels(said["steps"]))
    stage, levels = ldmkit.recipe(name).first_stage, len(options(name)["channel_mult"])
    multiple = 2 ** (len(stage.options["channel_mult"]) + levels - 2)
    assert said["height"] % multiple == said["width"] % multiple == 0
    assert said["guidance_scale"] == 1 or name in GUIDED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_source_is_guided_exactly_where_there_is_a_null(name):
    sources = ldmkit.recipe(name).sources.values()
    assert any(source.guided for source in sources) == (name in GUIDED)
    assert all(source.guided or source.drop == 0 for source in sources)


@pytest.mark.parametrize("name", PUBLISHED)
def test_guidance_keeps_what_is_joined_to_the_state(name):
    joined = {"semantic-map", "low-res", "noised-low-res", "masked-image", "depth"}
    sources = ldmkit.recipe(name).sources.values()
    assert not any(source.guided for source in sources if source.part.name in joined)
    assert all(source.guided for source in sources if source.part.name not in {*joined, "class-label"})


@pytest.mark.parametrize("name", PUBLISHED)
def test_heads_are_explicit(name):
    said = options(name)
    assert ("num_heads" in said) != ("head_channels" in said)
    assert (said.get("num_heads") == 1) == (name in ONE_HEAD)


@pytest.mark.parametrize("name", sorted(ONE_HEAD - {"cin256-v2"}))
def test_heads_that_today_s_code_would_build_otherwise_are_pointed_out(name):
    assert any("one head" in remark for remark in ldmkit.recipe(name).notes["remarks"])


def test_the_two_conventions_of_masks_are_told_apart():
    paper = ldmkit.recipe("inpainting-big").sources["masked_image"].part.options
    assert paper == {"channels": 3, "order": ["latent", "mask"], "mask_range": [-1.0, 1.0], "hole": -1.0}
    for name in ("sd-1-inpainting", "sd-2-inpainting"):
        stable = ldmkit.recipe(name).sources["masked_image"].part.options
        assert stable == {"channels": 4, "order": ["mask", "latent"], "mask_range": [0.0, 1.0], "hole": 0.0}


@pytest.mark.parametrize(
    ("name", "start", "end", "last"),
    [
        ("celebahq", 0.0015, 0.0195, 1.4230e-4),
        ("lsun-churches", 0.0015, 0.0155, 6.6867e-4),
        ("inpainting-big", 0.0015, 0.0205, 9.691e-5),
        ("rdm-768", 0.0015, 0.015, 8.1252e-4),
        ("sd-1", 0.00085, 0.012, 4.6601e-3),
        ("sd-x4-upscaler", 1e-4, 2e-2, 7.3341e-4),
    ],
)
def test_the_schedule_ends_where_the_original_s_does(name, start, end, last):
    process = build_part("process", ldmkit.recipe(name).process)
    assert (process.start, process.end) == (start, end)
    assert float(process.alpha_bar[-1]) == pytest.approx(last, rel=1e-4)


def test_predictions_are_those_of_the_papers():
    of_v = {name for name in PUBLISHED if ldmkit.recipe(name).prediction == "v"}
    assert of_v == {"sd-2-v", "sd-x4-upscaler", "sd-2-unclip-h", "sd-2-unclip-l"}
    assert {ldmkit.recipe(name).prediction for name in PUBLISHED} == {"eps", "v"}


def test_scales_of_latents_are_the_published_ones():
    scales = {ldmkit.recipe(name).first_stage.options["scale"]: name for name in PUBLISHED}
    assert scales.keys() == {1.0, 0.18215, 0.22765929, 0.08333}


def test_losses_that_are_not_squared_are_said():
    of_l1 = {name for name in PUBLISHED if ldmkit.recipe(name).objective == {"norm": "l1"}}
    maps = {"semantic-synthesis256", "semantic-synthesis512"}
    assert of_l1 == {"lsun-churches", "layout2img-openimages256", "inpainting-big", *maps}


def test_what_is_known_of_first_stages_is_complete():
    assert NOTES.keys() == FIRST_STAGES.keys()
    assert all(notes["source"].startswith("https://") for notes in NOTES.values())


def test_a_first_stage_takes_a_scale_and_another_width():
    part = first_stage("kl-f4", scale=0.5, channels=4)
    assert (part.options["scale"], part.options["channels"], part.options["z_channels"]) == (0.5, 4, 4)
    assert FIRST_STAGES["kl-f4"].options["channels"] == 3


def test_an_unknown_first_stage_is_refused_with_those_that_exist():
    with pytest.raises(UnknownComponentError, match=r"no published first stage 'kl-f5'.*'kl-f8'"):
        first_stage("kl-f5")


def test_reading_every_recipe_loads_no_torch():
    code = (
        "import sys, ldmkit, ldmkit.recipes as r, ldmkit.recipes.fingerprints as f;"
        "[ldmkit.recipe(name) for name in r.PUBLISHED]; f.candidates({'model.diffusion_model.x': (1,)});"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
