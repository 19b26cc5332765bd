"""Who provides the parts is written down, and who is missing is told in one message with the line for pip."""

import json

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import ldmkit
from ldmkit.errors import UnknownComponentError
from ldmkit.model import compose
from ldmkit.parts import Part, Recipe, Source
from ldmkit.weights.providers import check_provided, providers

UNET = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
UNET = Part("unet", {**UNET, "num_heads": 1})
VERSIONS = {"ldmkit": "0.1", "ldmkit-one": "0.3.1", "ldmkit-two": "1.0", "ldmkit-deep": "2.0rc1"}


def needing(*names, backbone=UNET):
    sources = {f"s{i}": Source(Part(name)) for i, name in enumerate(names)}
    return Recipe(Part("pixel"), backbone, Part("vp"), sources=sources)


def message(recipe, versions=VERSIONS):
    with pytest.raises(UnknownComponentError) as error:
        check_provided(recipe, versions)
    return str(error.value)


def test_one_message_lists_every_distribution_that_is_missing():
    deep = Part("unet", {"layers": [{"first": Part("d@ldmkit-deep", kind="conditioner")}]})
    text = message(needing("a@ldmkit-one", "b@ldmkit-two", "c@ldmkit-one", backbone=deep))
    assert "conditioner 'a', conditioner 'c' needs ldmkit-one, which is not installed" in text
    assert "(the file was written with 0.3.1)" in text
    assert "conditioner 'b' needs ldmkit-two" in text
    assert "conditioner 'd' needs ldmkit-deep" in text
    assert text.endswith('pip install "ldmkit-deep>=2.0rc1" "ldmkit-one>=0.3.1" "ldmkit-two>=1.0"')


def test_what_pip_cannot_help_with_has_no_line_for_pip():
    assert "call ldmkit.register first" in message(needing("mine@<local>"))
    assert "pip" not in message(needing("mine@<local>"))
    assert "unknown conditioner 'later'; the file was written by ldmkit 0.1" in message(needing("later"))
    assert "pip" not in message(needing("later"))


def test_an_installed_distribution_that_lacks_the_part_is_named_with_its_version():
    plugin = next(
        (info for info in ldmkit.plugins() if info.distribution not in ("ldmkit",) and info.status == "ok"), None
    )
    if plugin is None:
        pytest.skip("no plug-in is installed")
    text = message(needing(f"gone@{plugin.distribution}"), {plugin.distribution: "99.0"})
    assert f"is not in the installed {plugin.distribution} {plugin.version}" in text
    assert f'pip install "{plugin.distribution}>=99.0"' in text


@pytest.mark.parametrize(
    ("owner", "version"),
    [
        ("x; rm -rf ~", "1"),
        ("--index-url=http://evil", "1"),
        ("git+https://evil/x", "1"),
        ("ldmkit-x", '1"; rm -rf ~; "'),
    ],
)
def test_names_from_a_file_never_become_a_command(owner, version):
    text = message(needing(f"a@{owner}"), {owner: version, "ldmkit-x": version})
    _, _, line = text.partition("pip install ")
    assert line in ("", "ldmkit-x")


def test_every_provider_is_written_with_its_version_and_parts_inside_parts_count():
    assert providers(needing()) == {"ldmkit": ldmkit.__version__}
    recipe = needing("class-label", backbone=Part("unet", {"inner": Part("x@<local>", kind="backbone")}))
    assert providers(recipe) == {"ldmkit": ldmkit.__version__, "<local>": ""}
    installed = {info.distribution: info.version for info in ldmkit.plugins()}
    for owner, version in installed.items():
        assert providers(needing(f"x@{owner}"))[owner] == version


def test_a_recipe_that_can_be_built_passes():
    check_provided(needing("class-label"), {})


def test_loading_tells_what_is_missing_before_anything_is_built(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    compose(needing()).save(path)
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["ldmkit"])
    record["recipe"]["first_stage"]["part"] = "a@ldmkit-one"
    record["recipe"]["backbone"]["part"] = "b@ldmkit-two"
    record["providers"] = VERSIONS
    save_file(load_file(path), path, {"format": "pt", "ldmkit": json.dumps(record)})
    monkeypatch.setattr(nn.Module, "__init__", None)
    with pytest.raises(UnknownComponentError, match=r"'a' needs ldmkit-one.*'b' needs ldmkit-two.*pip install"):
        ldmkit.load(path)
