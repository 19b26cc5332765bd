"""``python -m ldmkit new-plugin`` writes a distribution that builds, installs and passes the conformance suite."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import ldmkit
from ldmkit import __main__ as command_line
from ldmkit import new_plugin
from ldmkit.errors import PluginError
from ldmkit.registry import KINDS

ROOT = Path(ldmkit.__file__).parents[1]
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib")


def run(python: Path | str, *arguments: str, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees ldmkit and the folders given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LDMKIT_")}
    seen = os.pathsep.join(map(str, (*path, ROOT)))
    environment = {**inherited, "PYTHONPATH": seen, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([str(python), *arguments], env=environment, capture_output=True, text=True)


def install_in_place(folder: Path) -> None:
    """Give a source folder the metadata that an installer would make of its pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = "".join(f"{key} = {value}\n" for key, value in project["entry-points"]["ldmkit"].items())
    (info / "entry_points.txt").write_text(f"[ldmkit]\n{points}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One distribution of every kind, as installed."""
    out = tmp_path_factory.mktemp("plugins")
    written = {kind: new_plugin.write(f"my-{kind}", kind, out) for kind in KINDS}
    for folder in written.values():
        install_in_place(folder)
    return written


@pytest.fixture(scope="module")
def outcomes(folders: dict[str, Path]) -> dict[str, list[str]]:
    """Kind -> how each of its conformance tests ended, all in one interpreter; an empty string is a pass."""
    report = folders["recipe"].parent / "report.xml"
    tests = [str(folder / "tests") for folder in folders.values()]
    settings = ("-W", "error", "-c", os.devnull, f"--rootdir={report.parent}", f"--junitxml={report}")
    done = run(sys.executable, *PYTEST, *settings, *tests, path=tuple(folders.values()))
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for case in ET.parse(report).iter("testcase"):
        owner = next((kind for kind in KINDS if f"ldmkit-my-{kind}." in f"{case.get('classname')}."), None)
        assert owner is not None, f"whose test is {case.get('classname')}? {done.stdout}"
        wrong = [child for child in case if child.tag in ("failure", "error")]
        found[owner].append(f"{case.get('name')}: {wrong[0].get('message')}" if wrong else "")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_its_conformance_tests(kind: str, outcomes: dict[str, list[str]]):
    assert len(outcomes[kind]) > 10
    assert [outcome for outcome in outcomes[kind] if outcome] == []


def test_every_plugin_is_found_without_importing_torch(folders: dict[str, Path]):
    listing = """
import sys
from ldmkit import registry
print(*(info.status for info in registry.plugins() if info.distribution.startswith("ldmkit-my-")))
print("torch" in sys.modules)
"""
    done = run(sys.executable, "-c", listing, path=tuple(folders.values()))
    assert done.stdout.splitlines() == [" ".join(["ok"] * len(KINDS)), "False"], done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_template_is_left(kind: str):
    rendered = new_plugin.render("depth-map", kind)
    assert [found for text in rendered.values() for found in re.findall(r"@\w+@", text)] == []
    for path, text in rendered.items():
        if path.endswith(".py"):
            assert ast.get_docstring(ast.parse(text)), path
    assert max(len(line) for text in rendered.values() for line in text.splitlines()) <= 120


def test_command_writes_a_conditioner_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command_line.main(["new-plugin", "depth-map", "--out", str(tmp_path / "new")]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "new" / "ldmkit-depth-map"
    assert (
        'register.conditioner("depth-map", "ldmkit_depth_map.conditioner:DepthMap")'
        in (folder / "ldmkit_depth_map" / "_register.py").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["Depth"], "'Depth' is no name"),
        (["../up"], "'../up' is no name"),
        (["ldmkit-deep"], "give the name without its prefix, 'deep'"),
        (["tensor"], "would be called Tensor"),
        (["none", "--kind", "sampler"], "would be called None"),
        (["class", "--kind", "recipe"], "would be called class"),
        (["ddim", "--kind", "sampler"], "sampler 'ddim' is a built-in"),
        (["deep"], "ldmkit-deep exists"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "ldmkit-deep").mkdir()
    assert command_line.main(["new-plugin", *arguments, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ldmkit: error: ")
    assert told in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["ldmkit-deep"]


def test_unknown_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["new-plugin", "deep", "--kind", "samplr", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "samplr" in capsys.readouterr().err
    with pytest.raises(PluginError, match="unknown kind 'samplr'; did you mean"):
        new_plugin.write("deep", "samplr", tmp_path)


def test_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(PluginError, match="cannot be written"):
        new_plugin.write("deep", out=tmp_path / "file" / "within")


COMPOSE = """
import torch, ldmkit
from ldmkit.parts import Part, Recipe, Source
unet = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [],
        "num_heads": 2, "concat_channels": 1}
"""
SAVE = (
    COMPOSE
    + """
model = ldmkit.compose(Recipe(
    first_stage=Part("pixel", {"channels": 3}), backbone=Part("unet", unet), process=Part("vp"),
    sources={"depth": Source(Part("depth-map", {"factor": 1}))},
)).eval()
model.save(FILE)
"""
)
LOAD = """
import ldmkit, torch
model = ldmkit.load(FILE)
part = model.recipe().sources["depth"].part
print(part.name, tuple(model.sample({"map": torch.rand(1, 1, 8, 8)}, size=(8, 8), levels=2).shape))
"""


def test_wheel_works_in_a_fresh_environment_and_is_missed_elsewhere(tmp_path: Path):
    folder = new_plugin.write("depth-map", out=tmp_path)
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-input")
    wheel = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path / "wheels"), str(folder))
    built = run(sys.executable, *pip, *wheel)
    assert built.returncode == 0, built.stdout + built.stderr
    (built_wheel,) = (tmp_path / "wheels").glob("*.whl")

    python = layered_environment(tmp_path / "env")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    target = ("install", "--no-deps", "--no-index", "--target", site, str(built_wheel))
    installed = run(python, *pip, *target)
    assert installed.returncode == 0, installed.stdout + installed.stderr

    tested = run(python, *PYTEST, str(folder / "tests"))
    assert tested.returncode == 0, tested.stdout + tested.stderr

    file = f"FILE = {str(tmp_path / 'model.safetensors')!r}\n"
    saved = run(python, "-c", file + SAVE)
    assert saved.returncode == 0, saved.stderr
    loaded = run(python, "-c", file + LOAD)
    assert loaded.stdout.strip() == "depth-map@ldmkit-depth-map (1, 3, 8, 8)", loaded.stderr

    elsewhere = run(sys.executable, "-c", file + LOAD)
    told = elsewhere.stderr.splitlines()[-1]
    assert elsewhere.returncode == 1
    assert told.startswith("ldmkit.errors.UnknownComponentError: ")
    assert "conditioner 'depth-map' needs ldmkit-depth-map, which is not installed" in told


def layered_environment(folder: Path) -> Path:
    """A new environment that sees the packages of the running one, torch among them; the path of its python."""
    made = run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    assert made.returncode == 0, made.stderr
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    # The running environment may be a virtual one itself: --system-site-packages would skip it.
    layers = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = "".join(f"import site; site.addsitedir({layer!r})\n" for layer in sorted(layers))
    (site / "parent.pth").write_text(lines)
    return python
