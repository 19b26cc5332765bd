"""Files that appear complete under their name or not at all.

What is written goes to ``.NAME.RANDOM.partial`` beside its place, is synced to the disk, and is renamed over the old
file. A process that is killed leaves such a partial file behind; the next write to the same name removes it, unless
another process holds it open to write.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then give it the name: all or nothing.

    Args:
        path: the file to make or to replace.
        write: fills the file that it is given, which exists and is empty; it may replace it.

    Raises:
        OSError: the folder is not there, or the disk is full; an old file is left as it was.
    """
    with partial_file(path) as (partial, file):
        mode = partial.stat().st_mode  # as this process makes files; some writers make private ones
        write(partial)
        file.close()
        partial.chmod(mode)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    sync_folder(path.parent)


@contextmanager
def partial_file(path: Path, family: str = "") -> Iterator[tuple[Path, BinaryIO]]:
    """A new empty file beside ``path``, open to write; it is gone afterwards, unless it was given another name.

    Args:
        path: where the file is meant to go.
        family: the name under which :func:`sweep` finds what a killed process left; that of ``path`` if empty.

    Raises:
        OSError: the folder is not there, or ``path`` is a folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into: make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    sweep(path.with_name(family or path.name))
    partial = path.with_name(f".{family or path.name}.{secrets.token_hex(8)}.partial")
    with partial.open("x+b") as file:
        try:
            _lock(file)
            yield partial, file
        finally:
            file.close()
            partial.unlink(missing_ok=True)


def synced(file: BinaryIO) -> None:
    """Flush a file to the disk, and close it."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last, where the system can open folders."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(path: Path) -> None:
    """Remove the partial files of a name whose writers are gone."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError), left.open("r+b") as file:
            _lock(file)
            left.unlink()


def _lock(file: BinaryIO) -> None:
    """Mark a file as being written; BlockingIOError where another process has."""
    if sys.platform != "win32":  # there an open file cannot be removed anyway
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
