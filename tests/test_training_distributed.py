"""Several processes: the numbers of one, states that any number can read, and an end for everyone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed import unet
from distributed.small import Both, Vectors, run, trained
from safetensors.torch import load_file
from torch import nn

import ldmkit
from ldmkit.training.log import read_log
from ldmkit.training.loop import train
from ldmkit.training.parallel import Sharded, gathered, process_group, rank, summed, world
from ldmkit.training.power_ema import PowerProfile, reconstruct

TESTS = Path(__file__).parent
SPREADS = ("replicated", "sharded")


def launch(out, what, script="job"):
    """Start a script in two processes, as a user does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(TESTS / "distributed" / f"{script}.py"), *what, str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What two processes left; ``left-*`` were begun by one."""
    out = tmp_path_factory.mktemp("runs")
    for name in SPREADS:
        trained(out / f"left-{name}", steps=4)
    job = launch(out, ["equal"])
    _, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in one process."""
    return trained(tmp_path_factory.mktemp("alone"))


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert float((a[name] - b[name]).abs().max()) <= 1e-6 * float(b[name].abs().max()), name


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("kind", ["whole", "parts"])
def test_two_processes_train_what_one_trains(out, alone, kind, spread):
    assert_close(load_file(out / f"{kind}-{spread}" / "model.safetensors"), alone)


@pytest.mark.parametrize("spread", SPREADS)
def test_two_processes_go_on_where_one_was(out, alone, spread):
    assert_close(load_file(out / f"left-{spread}" / "model.safetensors"), alone)


@pytest.mark.parametrize("spread", SPREADS)
def test_one_process_goes_on_where_two_were(out, alone, spread):
    assert_close(trained(out / f"half-{spread}"), alone)


@pytest.mark.parametrize("spread", SPREADS)
def test_a_phase_that_sits_out_does_so_in_every_process(out, tmp_path, spread):
    alone = load_file(train(Both(), Vectors(), run(tmp_path)))
    assert float(alone["late"]) > 0
    assert_close(load_file(out / f"both-{spread}" / "model.safetensors"), alone)


@pytest.mark.parametrize("spread", SPREADS)
def test_the_first_process_alone_writes(out, spread):
    whole = out / f"whole-{spread}"
    assert [line["step"] for line in read_log(whole / "log.jsonl")] == [2, 4, 6]
    names = sorted(path.name for path in whole.iterdir())
    assert names == ["log.jsonl", "model.safetensors", "shown", "step-00000006"]


def test_all_processes_skip_the_same_steps(out):
    events = [line["event"] for line in read_log(out / "bad" / "log.jsonl") if "event" in line]
    assert len(events) == 3
    assert all("samples [7] of the data" in event for event in events)
    result = load_file(out / "bad" / "model.safetensors")
    assert all(value.isfinite().all() for value in result.values())


@pytest.mark.parametrize("spread", SPREADS)
def test_two_processes_keep_the_averages_of_one(out, tmp_path, spread):
    profile = PowerProfile(every=2)
    trained(tmp_path, profile=profile)
    one, two = (reconstruct(run / "profiles" / "net", 0.08) for run in (tmp_path, out / f"parts-{spread}"))
    assert_close(two, one)


DEATHS = {
    "failing": "of Failing cannot be read: OSError: the disk is gone",
    "unwritable": "OSError: the result has no place",
    "killed": "Signal 9 (SIGKILL) received by PID",
    "outside": "were read while they were shared out: by another module",
}


@pytest.mark.parametrize("what", DEATHS)
def test_a_process_that_dies_ends_the_job_and_says_why(tmp_path, what):
    job = launch(tmp_path, [what])
    _, said = job.communicate(timeout=300)
    assert job.returncode != 0
    assert DEATHS[what] in said


@pytest.fixture(scope="module")
def unets(tmp_path_factory):
    """What two processes made of a small unet, in every way there is."""
    out = tmp_path_factory.mktemp("unets")
    job = launch(out, [], "unet")
    _, said = job.communicate(timeout=600)
    assert job.returncode == 0, said
    return out


@pytest.fixture(scope="module")
def unet_alone(tmp_path_factory):
    """The same in one process."""
    return unet.finished(tmp_path_factory.mktemp("unet"))


@pytest.mark.parametrize("way", unet.WAYS)
def test_a_unet_is_spread_in_every_way(unets, unet_alone, way):
    start, alone = unet.model().state_dict(), unet_alone.state_dict()
    found = load_file(unets / way / "model.safetensors")
    assert found.keys() == alone.keys()
    learned, apart = (
        torch.cat([(alone[name] - other[name]).double().flatten() for name in alone]).norm() for other in (start, found)
    )
    assert float(apart) < 1e-5 * float(learned)


@pytest.mark.parametrize("way", unet.WAYS)
def test_what_was_trained_is_whole_in_every_process(unets, unet_alone, way):
    loss = unet_alone.loss(unet.batch(), (0, 1)).detach()
    torch.testing.assert_close(torch.load(unets / f"{way}.pt"), loss, rtol=1e-4, atol=0)
    saved = ldmkit.load(unets / f"{way}.safetensors")
    torch.testing.assert_close(saved.loss(unet.batch(), (0, 1)).detach(), loss, rtol=1e-4, atol=0)


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves(tmp_path):
    job = launch(tmp_path, ["slow"])
    log = tmp_path / "slow" / "log.jsonl"
    end = time.monotonic() + 120
    while not read_log(log) and time.monotonic() < end:
        job.poll()
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "the same call goes on from" in said
    assert [path.name for path in (tmp_path / "slow").glob("step-*")] != []


def test_alone_there_is_no_group():
    with process_group():
        assert (rank(), world()) == (0, 1)
        assert summed(torch.tensor([1.0, 2.0])) == [1.0, 2.0]
        assert gathered("a") == ["a"]


def test_units_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match=r"no submodule fits 'blocks\.\*'"):
        Sharded("blocks.*")(nn.Sequential(nn.Linear(2, 2)))
    nested = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])})
    Sharded("blocks.*.*")(nested)
    with pytest.raises(ValueError, match=r"no submodule fits '\*\.0\.0\.\*'"):
        Sharded("*.0.0.*")(nested)


def test_units_that_are_never_called_are_refused():
    nested = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
    with pytest.raises(ValueError, match=r"unit 'blocks' is a ModuleList, which is never called: name 'blocks\.\*'"):
        Sharded("*")(nested)
