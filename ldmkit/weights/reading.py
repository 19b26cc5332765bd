"""Opening a file of weights: what is in it is known before any number is read, and nothing in it is run.

:func:`opened` tells three formats apart by their first bytes: what ``torch.save`` writes today (a zip archive with a
pickle), what it wrote before (a pickle with numbers behind it) and safetensors. Each gives :class:`Contents`: names,
shapes and places. A tensor is read when it is asked for, from its place in the file and into memory of its own size, so
that the file is never in memory as a whole. No path that a file holds is followed, because none is looked at.

Naming tensors is not done here: see :mod:`ldmkit.weights.original`.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from ldmkit.errors import CheckpointError
from ldmkit.weights import archived, legacy, safetensors_file
from ldmkit.weights.pickles import count
from ldmkit.weights.stored import Stored

_CHUNK = 2**22
_FOREIGN = {
    b"": "it is empty",
    b"version https://git-lfs": "it is a pointer of Git LFS: fetch the file itself, with git lfs pull",
    b"<": "it is a page of the web, such as a failed download gives",
    b"GGUF": "it is a GGUF file",
    b"\x93NUMPY": "it is an array of NumPy",
    b"\x1f\x8b": "it is compressed: unpack it",
    b"PAR1": "it is a table of Parquet",
}


@dataclass(frozen=True)
class Contents:
    """An open file of weights.

    Args:
        path: the file.
        layout: its format, for people.
        tensors: name -> where it lies.
        others: what else the file holds: name -> why no model needs it.
        facts: numbers and text that the file tells beside its tensors.
    """

    path: Path
    layout: str
    tensors: Mapping[str, Stored]
    others: Mapping[str, str]
    facts: Mapping[str, str | int | float]
    file: BufferedReader = field(repr=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, contiguous, in memory of its own, on the CPU.

        Raises:
            CheckpointError: the file ends before it, or its bytes are not those that were written.
        """
        stored = self.tensors[name]
        flat = torch.empty(count(stored.shape), dtype=stored.dtype)
        crc = self._fill(flat, stored)
        if stored.crc is not None and crc != stored.crc:
            raise CheckpointError(f"{self.path} is damaged: the bytes of '{name}' are not those that were written")
        if stored.dtype == torch.bool:
            flat = flat.view(torch.uint8) != 0  # any other byte in a bool is undefined
        return flat.as_strided(stored.shape, stored.stride).contiguous()

    def _fill(self, flat: Tensor, stored: Stored) -> int:
        """Copy the bytes of a tensor from the file; their CRC-32."""
        if flat.numel() == 0:
            return 0
        target, crc = memoryview(flat.view(torch.uint8).numpy()), 0
        self.file.seek(stored.place)
        for start in range(0, len(target), _CHUNK):
            chunk = target[start : start + _CHUNK]
            if self.file.readinto(chunk) != len(chunk):
                raise CheckpointError(f"{self.path} is damaged: it ends early")
            crc = zlib.crc32(chunk, crc) if stored.crc is not None else 0
        return crc


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Contents]:
    """A file of weights, open while the block lasts.

    Args:
        path: a ``.ckpt``, ``.pt`` or ``.pth`` that ``torch.save`` wrote, or a safetensors file. The format is told by
            what the file holds, not by its name.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: another kind of file, a damaged one, or one that holds a program; before any tensor is read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            yield _contents(path, file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _contents(path: Path, file: BufferedReader) -> Contents:
    try:
        return _told(path, file)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged ({type(error).__name__}: {error!s:.200})"
        ) from error


def _told(path: Path, file: BufferedReader) -> Contents:
    """Tell the format by the first bytes."""
    first = file.read(64)
    file.seek(0)
    if first.startswith(archived.MAGIC):
        return Contents(path, "a pickle in a zip archive", *archived.read(file), file)
    if first.startswith(legacy.MAGIC):
        return Contents(path, "a pickle as torch wrote it before version 1.6", *legacy.read(file), file)
    if first[8:9] == b"{":
        return Contents(path, "safetensors", *safetensors_file.read(file), file)
    for magic, what in _FOREIGN.items():
        if first.startswith(magic) if magic else not first:
            raise CheckpointError(what)
    raise CheckpointError("it is neither a file of torch.save nor safetensors")
