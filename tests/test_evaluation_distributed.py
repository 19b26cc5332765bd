"""An evaluation in several processes finds what one process finds, and one of them writes it down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed.evaluating import found

TESTS = Path(__file__).parent


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def out(request, tmp_path_factory):
    """What so many processes left; with three, one of them has no image of the smallest sets."""
    out = tmp_path_factory.mktemp("evaluated")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    command = [*torchrun, str(TESTS / "distributed" / "evaluating.py"), str(out)]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert job.returncode == 0, job.stderr
    assert json.loads((out / "report" / "report.json").read_text())["protocol"]["processes"] == request.param
    return out


@pytest.fixture(scope="module")
def alone():
    return found()[1]


def test_every_process_finds_what_one_finds(out, alone):
    files = sorted(out.glob("[0-9].json"))
    assert len(files) in (2, 3)
    for file in files:
        numbers = json.loads(file.read_text())
        assert numbers.keys() == alone.keys()
        for part in ("figures", "floor", "two"):
            assert numbers[part] == pytest.approx(alone[part], rel=1e-6)
        assert numbers["pairs"].keys() == alone["pairs"].keys()
        for name, values in alone["pairs"].items():
            assert numbers["pairs"][name] == pytest.approx(values, rel=1e-6)
        assert numbers["shown"] == pytest.approx(alone["shown"])


def test_one_process_writes(out):
    names = sorted(path.name for path in (out / "report").iterdir())
    assert names == ["figures.png", "pairs.png", "report.json", "samples.png"]
