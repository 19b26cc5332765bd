"""Ten bad plug-ins at once: the core lists, builds and samples, and says once of each broken one what is wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import command, listing
from benchmarks.measure import Setting
from plugins.distributions import hook, install, offer

import ldmkit
from ldmkit import builtin
from ldmkit.errors import LdmkitPluginWarning
from ldmkit.registry import KINDS, PLUGIN_API, PluginInfo, Registry

ROOT = Path(ldmkit.__file__).parents[1]

BROKEN = {
    "import-error": ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "system-exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "hook-raises": (hook("register.task('half', 'a:B')", "1 / 0"), "ZeroDivisionError"),
    "wrong-signature": (hook("pass").replace("(register)", "(registry)"), "is not ldmkit_register(register)"),
    "duplicate-names": (hook("register.task('half', 'a:B')", "register.task('half', 'a:C')"), "is offered twice"),
    "reserved-names": (offer("ddim", "a:B", "sampler"), "has the name of a built-in, which is reserved"),
    "future-api": (
        "ldmkit_api = (9, 0)" + offer("half", "a:B", "task"),
        "written for plug-in API 9.0; this ldmkit has 1.0: upgrade ldmkit",
    ),
    "broken-metadata": (offer("half", "a:B", "task"), "its metadata cannot be read"),
}
"""Sources of the light modules, and the reason that must be given; ``ldmkit-`` goes before each name."""

SLOW = 0.2
ODD = {
    "slow-import": f"import time\ntime.sleep({SLOW})" + offer("slow", "a:B", "task"),
    "prints": 'print("{rumble")' + offer("loud", "a:B", "task"),
}
"""They load."""

SAMPLE = """
import ldmkit
from ldmkit.model import compose
from ldmkit.parts import Part, Recipe

unet = {"channels": 1, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
recipe = Recipe(
    first_stage=Part("pixel", {"channels": 1}),
    backbone=Part("unet", {**unet, "num_heads": 2}),
    process=Part("vp", {}),
    prediction="v",
)
image = compose(recipe).eval().sample(size=(8, 8), levels=2, count=2)
print(tuple(image.shape), bool(image.isfinite().all()))
"""
"""Run in a process of its own: composing asks the one registry that a process shares."""

THING = '''
class Thing:
    """A good neighbour."""

    def __init__(self, size: int = 1) -> None:
        self.size = size
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path to install distributions into; what is imported from it is forgotten afterwards."""
    for variable in ("LDMKIT_PLUGINS", "LDMKIT_DISABLE", "LDMKIT_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def neighbourhood(site: Path) -> Path:
    """Ten bad plug-ins, each of a version of its own, and a good one."""
    sources = {name: source for name, (source, _) in BROKEN.items()} | ODD
    for number, (name, source) in enumerate(sources.items()):
        install(site, f"ldmkit-{name}", {f"light_{number}": source}, version=f"0.{number}")
    (metadata,) = site.glob("ldmkit_broken_metadata-*.dist-info/METADATA")
    metadata.write_bytes(b"Name: b\xff\n")
    good = {"good_light": offer("good", "good_heavy:Thing", "task"), "good_heavy": THING}
    install(site, "ldmkit-good", good)
    return site


def row(table: Registry, distribution: str) -> PluginInfo:
    """The one plug-in of a distribution."""
    (info,) = [info for info in table.plugins() if info.distribution == distribution]
    return info


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees the folder's distributions."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LDMKIT_")}
    path = os.pathsep.join(filter(None, [str(site), str(ROOT), inherited.get("PYTHONPATH")]))
    environment = {**inherited, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], cwd=site, env=environment, capture_output=True, text=True)


# All of them at once


def test_each_broken_plugin_is_warned_about_once_with_its_version_and_reason(neighbourhood: Path):
    with pytest.warns(LdmkitPluginWarning) as caught:
        Registry().plugins()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(BROKEN)
    for number, (name, (_, reason)) in enumerate(BROKEN.items()):
        (message,) = [message for message in messages if message.startswith(f"plug-in ldmkit-{name} 0.{number} ")]
        assert reason in message


@pytest.mark.filterwarnings("ignore::ldmkit.errors.LdmkitPluginWarning")
def test_all_that_works_is_listed_and_builds(neighbourhood: Path):
    table = Registry()
    for kind in KINDS:
        more = ["good", "loud", "slow"] if kind == "task" else []
        assert set(table.names(kind)) >= {*builtin.TABLE[kind], *more}
    assert "half" not in table.names("task")
    assert table.build("task", "good", size=3).size == 3
    assert table.build("sampler", "ddim") is not None


@pytest.mark.filterwarnings("ignore::ldmkit.errors.LdmkitPluginWarning")
def test_the_slow_one_loads_and_its_seconds_are_told(neighbourhood: Path):
    slow = row(Registry(), "ldmkit-slow-import")
    assert slow.status == "ok"
    assert slow.seconds >= SLOW


def test_a_tiny_model_samples_among_them(neighbourhood: Path):
    done = run(neighbourhood, "-c", SAMPLE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "(2, 1, 8, 8) True"
    assert done.stderr.count("LdmkitPluginWarning") == len(BROKEN)


# The command line


def test_components_describe_and_plugins_work(neighbourhood: Path):
    for arguments in (["components"], ["describe", "sampler", "ddim"], ["describe", "task", "good"], ["plugins"]):
        done = run(neighbourhood, "-m", "ldmkit", *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert "rumble" not in done.stdout
        assert "Traceback" not in done.stderr


def test_components_skip_each_broken_plugin_once_on_stderr(neighbourhood: Path):
    done = run(neighbourhood, "-m", "ldmkit", "components", "--json")
    assert {"good", "loud", "slow"} <= {entry["name"] for entry in json.loads(done.stdout)}
    skipped = [line for line in done.stderr.splitlines() if "skipped plug-in" in line]
    assert len(skipped) == len(BROKEN)
    for number, (name, (_, reason)) in enumerate(BROKEN.items()):
        (line,) = [line for line in skipped if f"skipped plug-in ldmkit-{name} 0.{number} " in line]
        assert reason in line


def test_plugins_tell_what_is_broken_and_how_long_each_took(neighbourhood: Path):
    done = run(neighbourhood, "-m", "ldmkit", "plugins", "--json")
    found = {row["distribution"]: row for row in json.loads(done.stdout)}
    assert {name for name, row in found.items() if row["status"] == "failed"} == {f"ldmkit-{name}" for name in BROKEN}
    assert found["ldmkit-slow-import"]["seconds"] >= SLOW


# The version of the plug-in API


@pytest.mark.parametrize("said", ["", "ldmkit_api = (1, 0)", f"ldmkit_api = {PLUGIN_API}"])
@pytest.mark.parametrize("point", ["x_light", "x_light:plugin"])
def test_a_plugin_of_this_api_or_of_none_loads(site: Path, said: str, point: str):
    itself = "\nimport sys\nplugin = sys.modules[__name__]\n"
    install(site, "ldmkit-x", {"x_light": said + offer("mine", "a:B", "task") + itself}, {"main": point})
    assert "mine" in Registry().names("task")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("(9, 0)", "written for plug-in API 9.0; this ldmkit has 1.0: upgrade ldmkit"),
        ("(1, 1)", "written for plug-in API 1.1; this ldmkit has 1.0: upgrade ldmkit"),
        ("(0, 7)", "written for plug-in API 0.7; this ldmkit has 1.0: upgrade the plug-in"),
        *[(said, "ldmkit_api must be") for said in ("'1.0'", "1", "(1,)", "[1, 0]", "(True, 0)", "(1, -1)", "None")],
    ],
)
def test_a_plugin_of_another_api_is_refused_before_its_hook_runs(site: Path, said: str, reason: str):
    source = f"ldmkit_api = {said}" + hook("raise RuntimeError('the hook ran')")
    install(site, "ldmkit-x", {"x_light": source}, version="2.1")
    table = Registry()
    with pytest.warns(LdmkitPluginWarning, match=r"plug-in ldmkit-x 2\.1"):
        assert row(table, "ldmkit-x").status == "failed"
    assert reason in row(table, "ldmkit-x").error


# What listing costs


def test_listing_with_many_plugins_loads_no_torch_and_tells_its_cpu_time():
    (table,) = command.tables("listing", Setting(size="small", rounds=1, opponent=False))
    assert "loads no torch" in str(table)
    assert f"{listing.BUDGET} ms" in str(table)
    assert 0 < table.rows[listing.ALONE][0] < table.rows[listing.WITH][0]
