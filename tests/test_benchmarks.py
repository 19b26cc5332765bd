"""Each benchmark runs at a tiny size, and ldmkit and diffusers compute the same function there."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import command
from benchmarks.measure import ABSENT, Setting, Table, comparison, interleaved

ROOT = Path(__file__).parents[1]
ALONE = Setting(size="small", rounds=1, opponent=False)
IN_PROCESS = ("unet_step", "guided_sample", "decode", "sampler_overhead")
"""The rest starts processes of its own, each of which imports torch."""


def command_output(*arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def figures(table):
    return {name: dict(zip(table.columns, row, strict=True)) for name, row in table.rows.items()}


@pytest.mark.parametrize("name", command.NAMES)
def test_every_benchmark_prints_tables_and_says_that_diffusers_is_missing(name):
    tables = list(command.tables(name, ALONE))
    assert tables
    for table in tables:
        first = next(iter(figures(table).values()))
        assert first[table.columns[0]] > 0
        assert ABSENT in str(table)
        assert all(row in str(table) for row in table.rows)


@pytest.mark.parametrize("name", IN_PROCESS)
def test_every_benchmark_in_one_process_measures_diffusers_too(name):
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'ldmkit[bench]'")
    for table in command.tables(name, replace(ALONE, opponent=True)):
        assert "diffusers" in str(table)
        assert ABSENT not in str(table)
        assert all(row["x diffusers"] > 0 for row in figures(table).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imports", "memory"])
def test_every_benchmark_in_fresh_processes_measures_diffusers_too(name):
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'ldmkit[bench]'")
    for table in command.tables(name, replace(ALONE, opponent=True)):
        theirs = [row for contender, row in figures(table).items() if contender.startswith("diffusers")]
        assert theirs
        assert all(row[table.columns[0]] > 0 for row in theirs)


@pytest.mark.parametrize("name", ["unet_step", "guided_sample", "decode"])
def test_both_libraries_compute_the_same_function(name):
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'ldmkit[bench]'")
    for table in command.tables(name, replace(ALONE, opponent=True)):
        errors = [row["rel. error"] for contender, row in figures(table).items() if contender != "diffusers"]
        assert len(errors) > 1
        assert max(errors) < 1e-4


def test_importing_keeps_its_promises():
    (table,) = command.tables("imports", ALONE)
    assert "within 0.2 s" in str(table)
    assert "listing all components loads no torch" in str(table)


def test_command_prints_the_machine_and_the_tables():
    out = command_output("tests.benchmarks", "sampler_overhead", "decode", "--small", "--alone")
    assert "torch " in out.splitlines()[0]
    assert "load average" in out.splitlines()[1]
    assert out.index("sampler overhead") < out.index("decode, tiny KL")


def test_each_file_runs_alone():
    assert "decode, tiny KL" in command_output("tests.benchmarks.decode", "--small", "--alone")


def test_switches_are_named_in_the_title():
    out = command_output("tests.benchmarks", "decode", "--small", "--alone", "--switches")
    assert "cpu, float32, switches on" in out


def test_unknown_benchmark_is_refused_with_the_names(capsys):
    with pytest.raises(SystemExit):
        command.main(["decoding"])
    assert "decoding; the names are imports, unet_step" in capsys.readouterr().err


def test_contenders_take_turns_at_beginning():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleaved(calls, Setting(rounds=2), warm_up=0)
    assert order == ["a", "b", "b", "a"]
    assert {name: len(own) for name, own in times.items()} == {"a": 2, "b": 2}


def test_ratio_is_the_median_of_the_ratios_within_rounds():
    table = comparison("t", {"slow": [2.0, 20.0, 4.0], "fast": [1.0, 10.0, 1.0]}, "slow", unit=1, unit_name="s")
    assert figures(table)["fast"] == {"median s": 1.0, "fastest s": 1.0, "x slow": 2.0}
    assert figures(table)["slow"]["x slow"] == 1.0


def test_tables_are_aligned():
    lines = str(Table("title", ("one", "two"), {"a": (1.0, None), "longer": (12345.0, 0.5)}, ("a note",))).splitlines()
    assert lines[0] == "title"
    assert lines[-1] == "  a note"
    assert len({len(line) for line in lines[1:-1]}) == 1
