"""``python -m ldmkit check`` prints what the suite finds and exits with 1 where something fails."""

import subprocess
import sys

import pytest
from wrong import OFFERED

import ldmkit
from ldmkit.__main__ import main
from ldmkit.testing import Example, checks


@pytest.fixture(autouse=True, scope="module")
def registered():
    for kind, name, factory in OFFERED:
        ldmkit.register(kind, name, factory, replace=True)


def table(printed):
    """Check id -> the rest of its row."""
    rows = [line.split(maxsplit=1) for line in printed.splitlines() if line.startswith("  ") and not line[2].isdigit()]
    return dict(rows)


def test_it_prints_one_row_per_check_and_a_count():
    done = subprocess.run([sys.executable, "-m", "ldmkit", "check", "process", "edm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"process 'edm' (ldmkit {ldmkit.__version__})\n")
    rows = table(done.stdout)
    assert list(rows) == [check.id for check in checks("process")]
    assert rows["noise-grows-with-time"] == "pass"
    assert rows["training-times-lie-in-its-range"].startswith("expected failure")
    assert done.stdout.splitlines()[-1].strip() == f"{len(rows) - 1} pass, 0 fail, 0 not applicable, 1 expected failure"


def test_every_example_of_a_builtin_is_used(capsys):
    assert main(["check", "task", "class-conditional"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("task 'class-conditional'") == 3
    assert "task 'class-conditional', a list" in printed


def test_options_replace_those_of_the_example(capsys):
    assert main(["check", "sampler", "ddim", "--options", '{"eta": 0.3}']) == 0
    rows = table(capsys.readouterr().out)
    assert rows["has-the-order-it-declares"].startswith("not applicable  it says that it draws noise")
    assert main(["check", "sampler", "ddim", "--options", '{"eta": 3}']) == 1
    rows = table(capsys.readouterr().out)
    assert rows["builds"].startswith("fail")
    assert "needs eta in [0, 1], got 3" in rows["builds"]
    assert rows["deterministic"].startswith("not run")


def test_a_failure_is_status_one_with_the_reason_in_its_row(capsys):
    assert main(["check", "sampler", "claims-the-second-order"]) == 1
    rows = table(capsys.readouterr().out)
    assert rows["has-the-order-it-declares"].startswith("fail")
    assert "it declares order 2 and converges with order 1.0" in rows["has-the-order-it-declares"]


def test_a_conditioner_of_a_plugin_is_checked_with_an_example(capsys):
    assert main(["check", "conditioner", "depth-map", "--example", "wrong.conditioners:DEPTH"]) == 0
    assert capsys.readouterr().out.startswith("conditioner 'depth-map' (<local>)\n")
    assert main(["check", "conditioner", "centres-the-batch", "--example", "wrong.conditioners:DEPTH"]) == 1
    assert table(capsys.readouterr().out)["samples-are-independent"].startswith("fail")


NO_EXAMPLE = "a string"
OF_A_SAMPLER = Example("sampler", "ddim")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conditioner", "depth-map"], "conditioner 'depth-map' needs batch="),
        (["conditioner", "depth-map"], "--example module:attribute"),
        (["conditioner", "depht-map"], "unknown conditioner 'depht-map'; did you mean 'depth-map'?"),
        (["conditioner", "depth-map", "--example", "no_such_module:DEPTH"], "No module named 'no_such_module'"),
        (["conditioner", "depth-map", "--example", "wrong.conditioners:DEPT"], "has no attribute 'DEPT'"),
        (
            ["conditioner", "depth-map", "--example", f"{__name__}:NO_EXAMPLE"],
            "not an example of conditioner 'depth-map'",
        ),
        (
            ["conditioner", "depth-map", "--example", f"{__name__}:OF_A_SAMPLER"],
            "not an example of conditioner 'depth-map'",
        ),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_status_one(capsys, arguments, message):
    assert main(["check", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("ldmkit: error: ")
    assert message in line


@pytest.mark.parametrize("arguments", [["conditioner"], ["scheduler", "ddim"], ["sampler", "ddim", "--options", "[1]"]])
def test_misuse_is_status_two(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["check", *arguments])
    assert stopped.value.code == 2
    assert "usage: python -m ldmkit check" in capsys.readouterr().err
