"""Signals that end a run at the next step, with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ldmkit.training.parallel import world

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal ended the run; its state is saved, and the same call goes on with it."""


@dataclass
class Interruption:
    """Whether a signal has come, and which.

    Args:
        signal: its name; None: none has.
    """

    signal: str | None = None


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Take SIGINT and SIGTERM as a wish to stop; outside the main thread, where none arrive, do nothing.

    A second SIGINT ends a single process at once. Launchers send every signal on, so that with several processes
    further ones change nothing.
    """
    wish = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def take(number: int, frame: FrameType | None) -> None:
        wish.signal = signal.Signals(number).name
        if world() == 1 and number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    for number in SIGNALS:
        signal.signal(number, take)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
