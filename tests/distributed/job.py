"""Trained by every process that a launcher starts; the tests compare what it leaves."""

import sys
import time
import warnings
from pathlib import Path

from distributed.small import Both, Small, Vectors, run, trained

from ldmkit.training.loop import train
from ldmkit.training.parallel import Sharded, process_group, rank, replicated

SPREADS = {"replicated": replicated, "sharded": Sharded("layers.*")}


class Failing(Vectors):
    """Data that one process cannot read."""

    def __getitem__(self, place):
        if rank() == 1:
            raise OSError("the disk is gone")
        return super().__getitem__(place)


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
            trained(out / f"parts-{name}", accumulate=2, spread=spread)
            trained(out / f"half-{name}", steps=4, spread=spread)
            trained(out / f"left-{name}", spread=spread)
    for name, spread in (("replicated", replicated), ("sharded", Sharded())):
        train(Both(), Vectors(), run(out / f"both-{name}", spread=spread))
    trained(out / "bad", data=Vectors(bad=[7]))


def failing(out):
    """One process meets an error."""
    train(Small(), Failing(), run(out / "failing"))


def slow(out):
    """To be stopped by a signal."""
    train(Small(), Slow(), run(out / "slow", steps=2000, save_every=2000, show_every=2000))


if __name__ == "__main__":
    warnings.simplefilter("error")
    {"equal": equal, "failing": failing, "slow": slow}[sys.argv[1]](Path(sys.argv[2]))
