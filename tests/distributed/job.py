"""Trained by every process that a launcher starts; the tests compare what it leaves."""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

from distributed.small import Both, Small, Vectors, run, trained
from torch import nn

from ldmkit.training.loop import train
from ldmkit.training.parallel import Sharded, process_group, rank, replicated
from ldmkit.training.power_ema import PowerProfile

SPREADS = {"replicated": replicated, "sharded": Sharded("layers.*")}


class Failing(Vectors):
    """Data that one process cannot read."""

    def __getitem__(self, place):
        if rank() == 1:
            raise OSError("the disk is gone")
        return super().__getitem__(place)


class Unwritable(Small):
    """A result that the one process that writes it cannot write; the others wait for it."""

    def export(self, path, notes):
        raise OSError("the result has no place")


class Killed(Vectors):
    """Data in which one process is ended from outside."""

    def __getitem__(self, place):
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(place)


class Reading(nn.Module):
    """Reads the weights of a module that is never called."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6))

    def forward(self, batch, seeds, step):
        return nn.functional.linear(batch["x"], self.inner[0].weight).square().mean(1)


class Outside(Small):
    """Trains that."""

    def __init__(self):
        super().__init__()
        self.phases = {"net": Reading()}


class Slow(Vectors):
    """Data that take their time, so that a signal comes in between."""

    def __getitem__(self, place):
        time.sleep(0.02)
        return super().__getitem__(place)


def equal(out):
    """Every way to spread: whole runs, halves that one process goes on with, and halves that it left."""
    for name, spread in SPREADS.items():
        with process_group():
            trained(out / f"whole-{name}", spread=spread)
            trained(out / f"parts-{name}", accumulate=2, spread=spread, profile=PowerProfile(every=2))
            trained(out / f"half-{name}", steps=4, spread=spread)
            trained(out / f"left-{name}", spread=spread)
    for name, spread in (("replicated", replicated), ("sharded", Sharded())):
        train(Both(), Vectors(), run(out / f"both-{name}", spread=spread))
    trained(out / "bad", data=Vectors(bad=[7]))


def failing(out):
    """One process meets an error."""
    train(Small(), Failing(), run(out / "failing"))


def unwritable(out):
    """The first process meets an error where the others wait."""
    train(Unwritable(), Vectors(), run(out / "unwritable", steps=2))


def killed(out):
    """One process is gone without a word."""
    train(Small(), Killed(), run(out / "killed"))


def outside(out):
    """A unit whose weights are read from outside."""
    train(Outside(), Vectors(), run(out / "outside", spread=Sharded("inner.*")))


def slow(out):
    """To be stopped by a signal."""
    train(Small(), Slow(), run(out / "slow", steps=2000, save_every=2000, show_every=2000))


if __name__ == "__main__":
    warnings.simplefilter("error")
    jobs = (equal, failing, unwritable, killed, outside, slow)
    {job.__name__: job for job in jobs}[sys.argv[1]](Path(sys.argv[2]))
