"""One safetensors file, read and written tensor by tensor.

::

    8 bytes   n, little-endian
    n bytes   JSON: name -> {dtype, shape, data_offsets}; "__metadata__" -> texts
    the rest  the tensors, without gaps

The header is parsed here and not by the format's own library, for three reasons: a name that stands twice is refused
(two readers could see two tensors), a tensor is read straight into the memory where it will stay (a mapped file counts
twice, and takes the process down when another program truncates it), and what is written is hashed on its way.

Source: https://huggingface.co/docs/safetensors (format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmkit.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER = 16 * 2**20
MAX_TENSORS = 100_000
"""Far above any model: what is larger is no model of ours, and would cost minutes to find out."""

CHUNK = 16 * 2**20
METADATA = "__metadata__"


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type, and where its bytes are, from the file's start."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class TensorFile:
    """An open file with its header read and checked."""

    path: Path
    file: FileIO = field(repr=False)
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]

    def read(self, name: str, into: Tensor) -> None:
        """Fill a contiguous CPU tensor of the entry's type and shape.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        self._read(self.entries[name].start, memory(into))

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The bytes of a tensor, a piece at a time; each piece is overwritten by the next."""
        entry = self.entries[name]
        buffer = memoryview(bytearray(min(CHUNK, entry.stop - entry.start)))
        for start in range(entry.start, entry.stop, CHUNK):
            piece = buffer[: min(CHUNK, entry.stop - start)]
            self._read(start, piece)
            yield piece

    def _read(self, start: int, into: memoryview) -> None:
        self.file.seek(start)
        while into:
            count = self.file.readinto(into)
            if not count:
                raise CheckpointError(f"{self.path} is not a readable safetensors file: it ends too early")
            into = into[count:]


@contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    """Open a file and check its header; no tensor is read.

    Raises:
        CheckpointError: not a safetensors file, damaged, or with a header no model has.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = path.stat().st_size
            metadata, entries = _header(file, size)
            yield TensorFile(path, file, metadata, entries)
    except (_Damaged, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def planned(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """(the file's beginning, names in the order in which their bytes follow it).

    Raises:
        ValueError: the header would be larger than a reader accepts.
    """
    order = in_order(tensors)
    header: dict[str, Any] = {METADATA: dict(metadata)}
    stop = 0
    for name in order:
        value, start = tensors[name], stop
        stop += nbytes(value)
        header[name] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER or len(order) > MAX_TENSORS:
        raise ValueError(
            f"the header of the file would have {len(text)} bytes for {len(order)} tensors; at most {MAX_HEADER} and "
            f"{MAX_TENSORS} are read: keep large data out of the notes and the options"
        )
    return len(text).to_bytes(8, "little") + text, order


def in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names with wide types first, so that every tensor is aligned to its own width, as the format asks."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, in place."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())


def nbytes(tensor: Tensor) -> int:
    """The bytes that a tensor takes in a file."""
    return tensor.numel() * tensor.element_size()


class _Damaged(Exception):
    """What is wrong with a header."""


def _header(file: FileIO, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    start = _exactly(file, 8)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        raise _Damaged("it is a file of torch.save, which ldmkit.import_checkpoint reads")
    if start.lstrip()[:1] == b"<":
        raise _Damaged("it is a web page: the download gave a page in place of the file")
    length = int.from_bytes(start, "little")
    if length > min(MAX_HEADER, size - 8):
        raise _Damaged(f"its header claims {length} bytes of a file of {size}; at most {MAX_HEADER} are read")
    try:
        header = json.loads(_exactly(file, length), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS + 1:
        raise _Damaged(f"its header is no table of at most {MAX_TENSORS} tensors")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Damaged("its metadata are not texts by name")
    entries = {name: _entry(name, given, 8 + length) for name, given in header.items()}
    _check_gaps(entries.values(), 8 + length, size)
    return metadata, entries


def _exactly(file: FileIO, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    if len(data) < count:
        raise _Damaged(f"it ends after {len(data)} of the {count} bytes of its header")
    return bytes(data)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names stand once."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Damaged(f"its header has {next(name for name in names if names.count(name) > 1)!r:.80} twice")
    return table


def _entry(name: str, given: Any, begin: int) -> Entry:  # noqa: ANN401 - what a JSON parser gives
    match given:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)], **rest} if not rest:
            numbers = [*shape, start, stop]
            if dtype in DTYPES and all(type(number) is int and number >= 0 for number in numbers):
                width = torch.empty(0, dtype=DTYPES[dtype]).element_size()
                if math.prod(shape) * width == stop - start:
                    return Entry(name, DTYPES[dtype], tuple(shape), begin + start, begin + stop)
    raise _Damaged(f"the entry {name!r:.80} of its header is wrong: {given!r:.120}")


def _check_gaps(entries: Iterable[Entry], begin: int, size: int) -> None:
    """The tensors follow each other from the header to the end of the file."""
    at = begin
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start != at:
            raise _Damaged(f"tensor {entry.name!r:.80} begins at byte {entry.start}, the one before it ends at {at}")
        at = entry.stop
    if at != size:
        raise _Damaged(f"its tensors end at byte {at}, the file at {size}")
