"""Runs that are killed while they save: at every point where the disk is asked for something.

Each case runs in a fork of this process, so that torch is imported once.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from distributed.small import trained

ASKED = ("fsync", "replace", "rmdir")


def dies_at(count, out):
    """Train in a fork that is killed when it asks the disk for the ``count``-th time; whether it was."""
    child = os.fork()
    if child == 0:
        seen = 0

        def counted(call):
            def asked(*args, **named):
                nonlocal seen
                seen += 1
                if seen == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **named)

            return asked

        for name in ASKED:
            setattr(os, name, counted(getattr(os, name)))
        trained(out, dropout=0.3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(out):
    """Print at how many points a run was killed, and whether each went on to the same bits."""
    torch.set_num_threads(1)
    whole = trained(out / "whole", dropout=0.3)
    count = 0
    while dies_at(count + 1, out / f"killed-{count + 1}"):
        count += 1
        again = trained(out / f"killed-{count}", dropout=0.3)
        assert all(torch.equal(again[name], value) for name, value in whole.items()), f"other bits after point {count}"
        left = sorted(path.name for path in (out / f"killed-{count}").iterdir())
        assert left == ["log.jsonl", "model.safetensors", "shown", "step-00000006"], left
    print(count)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
