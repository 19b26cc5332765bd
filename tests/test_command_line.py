"""``python -m ldmkit`` prints what the functions return, also when every plug-in is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugins.distributions import install, installed, offer

import ldmkit
from ldmkit import builtin
from ldmkit.registry import KINDS

ROOT = Path(ldmkit.__file__).parents[1]


def run(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a fresh interpreter that sees the folder's distributions and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LDMKIT_")}
    path = os.pathsep.join(filter(None, [str(site), str(ROOT), inherited.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "ldmkit", *arguments],
        cwd=site,
        env={**inherited, "PYTHONPATH": path, "LDMKIT_DISABLE": installed(), **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """One plug-in that works and prints while it loads, and two broken ones."""
    heavy = 'print("heavy rumble")\nclass Map:\n    """Makes a map."""\n    def __init__(self, factor: int = 8): ...\n'
    install(
        tmp_path, "ldmkit-ok", {"ok_light": 'print("rumble")\n' + offer("a-map", "ok_heavy:Map"), "ok_heavy": heavy}
    )
    install(tmp_path, "ldmkit-bad", {"bad_light": "import no_such_module_anywhere"}, version="0.3")
    install(tmp_path, "ldmkit-exit", {"exit_light": 'print("{"); raise SystemExit(0)'})
    return tmp_path


def test_components_are_the_names_of_every_kind(noisy: Path):
    done = run(noisy, "components", "--json")
    listed = json.loads(done.stdout)
    names = {kind: sorted(builtin.TABLE[kind]) for kind in KINDS}
    names["conditioner"] = sorted([*names["conditioner"], "a-map"])
    assert [(entry["kind"], entry["name"]) for entry in listed] == [
        (kind, name) for kind in KINDS for name in names[kind]
    ]
    (mine,) = [entry for entry in listed if entry["name"] == "a-map"]
    assert mine == {
        "kind": "conditioner",
        "name": "a-map",
        "distribution": "ldmkit-ok",
        "version": "0.1",
        "factory": "ok_heavy:Map",
    }
    assert done.returncode == 0


def test_components_name_the_broken_plugins_on_stderr(noisy: Path):
    done = run(noisy, "components")
    assert "rumble" not in done.stdout
    assert "skipped plug-in ldmkit-bad 0.3 (entry point 'main'): ModuleNotFoundError" in done.stderr
    assert "skipped plug-in ldmkit-exit 0.1" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_components_of_one_kind(noisy: Path):
    lines = run(noisy, "components", "--kind", "conditioner").stdout.splitlines()
    assert lines[0] == "conditioner"
    assert [line.split()[0] for line in lines[1:]] == sorted([*builtin.TABLE["conditioner"], "a-map"])
    assert ["a-map", "ldmkit-ok", "0.1", "ok_heavy:Map"] in [line.split() for line in lines]


def test_plugins_say_what_became_of_each(noisy: Path):
    done = run(noisy, "plugins", "--json", LDMKIT_DISABLE="ldmkit-ok")
    found = {row["distribution"]: (row["version"], row["status"]) for row in json.loads(done.stdout)}
    expected = {
        "ldmkit": (ldmkit.__version__, "ok"),
        "ldmkit-bad": ("0.3", "failed"),
        "ldmkit-exit": ("0.1", "failed"),
        "ldmkit-ok": ("0.1", "disabled"),
    }
    assert expected.items() <= found.items()
    assert done.returncode == 0


def test_plugins_print_the_reason(noisy: Path):
    lines = run(noisy, "plugins").stdout.splitlines()
    (bad,) = [line for line in lines if "ldmkit-bad" in line]
    assert bad.startswith("failed")
    assert "No module named 'no_such_module_anywhere'" in bad


def test_describe_prints_the_description(noisy: Path):
    done = run(noisy, "describe", "conditioner", "a-map")
    for word in ("(ldmkit-ok 0.1)", "Makes a map.", "(factor: int = 8)", "ok_heavy:Map", "ok_heavy.py:2"):
        assert word in done.stdout
    assert "rumble" not in done.stdout
    assert done.returncode == 0


def test_unknown_name_is_one_line_and_status_one(noisy: Path):
    done = run(noisy, "describe", "conditioner", "amap")
    (line,) = [line for line in done.stderr.splitlines() if "rumble" not in line and line != "{"]
    assert line.startswith("ldmkit: error: unknown conditioner 'amap'; did you mean 'a-map'?")
    assert "ldmkit-bad 0.3" in line
    assert (done.stdout, done.returncode) == ("", 1)


def test_strict_is_one_line_and_status_one(noisy: Path):
    done = run(noisy, "components", LDMKIT_STRICT="1")
    assert done.stderr.startswith("ldmkit: error: plug-in ldmkit-bad 0.3 (entry point 'main') does not load")
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    "arguments", [[], ["component"], ["components", "--kind", "schedulers"], ["describe", "sampler"]]
)
def test_misuse_is_status_two(tmp_path: Path, arguments: list[str]):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert "usage: python -m ldmkit" in done.stderr


def test_version_needs_no_plugin(noisy: Path):
    done = run(noisy, "--version", LDMKIT_STRICT="1")
    assert (done.stdout.strip(), done.returncode) == (f"ldmkit {ldmkit.__version__}", 0)
