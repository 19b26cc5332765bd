"""The header of a safetensors file, checked more strictly than the library that reads them.

    8 bytes: the header's length N;  N bytes: JSON, name -> dtype, shape, [begin, end);  then the tensors' bytes

The library takes the last of two entries with one name, so that two readers may see different tensors, and builds as
many entries as there are. Here names are unique, the header is small, and the tensors fill the rest of the file.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from io import BufferedReader
from typing import Any

import torch

from ldmkit.errors import CheckpointError
from ldmkit.weights.pickles import MAX_SIDES, count
from ldmkit.weights.stored import Read, Stored

MAX_HEADER = 2**24
MAX_TENSORS = 50_000
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read(file: BufferedReader) -> Read:
    """What the header says.

    Raises:
        CheckpointError: a header that breaks the format's rules, or is out of proportion.
    """
    length = int.from_bytes(file.read(8), "little")
    end = file.seek(0, io.SEEK_END)
    if not 2 <= length <= min(MAX_HEADER, end - 8):
        raise CheckpointError(f"its header claims {length:,} bytes, of at most {min(MAX_HEADER, end - 8):,}")
    file.seek(8)
    header = _parsed(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError("the metadata in its header are no text by name")
    tensors = {name: _stored(name, entry, 8 + length) for name, entry in header.items()}
    _check_places(tensors, 8 + length, end)
    return Read(tensors, {}, {key: text for key, text in metadata.items() if len(text) <= 200 or key == "ldmkit"})


def _parsed(text: bytes) -> dict[str, Any]:
    """The header, without two entries of one name."""
    # Brackets are counted first: parsed, an empty list takes fifty times its two bytes.
    if text.count(b"{") > MAX_TENSORS or text.count(b"[") > 3 * MAX_TENSORS or text.count(b",") > 20 * MAX_TENSORS:
        raise CheckpointError(f"its header has more entries than {MAX_TENSORS:,} tensors need")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is no JSON: {error!s:.200}") from error
    if not isinstance(header, dict):
        raise CheckpointError("its header is no mapping")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise CheckpointError(f"its header has '{twice:.60}' more than once")
    return found


def _stored(name: str, entry: object, start: int) -> Stored:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)], **rest} if not rest:
            pass
        case _:
            raise CheckpointError(f"the entry '{name:.60}' of its header is no tensor")
    if kind not in DTYPES:
        raise CheckpointError(f"the tensor '{name:.60}' is of the kind '{kind:.20}', which is none of {[*DTYPES]}")
    if len(shape) > MAX_SIDES or not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise CheckpointError(f"the tensor '{name:.60}' has a shape that is none")
    if begin < 0 or end - begin != count(shape) * DTYPES[kind].itemsize:
        raise CheckpointError(f"the tensor '{name:.60}' has {end - begin:,} bytes, which do not fit its shape")
    return Stored(DTYPES[kind], tuple(shape), _contiguous(shape), start + begin)


def _check_places(tensors: Mapping[str, Stored], start: int, end: int) -> None:
    """Refuse tensors that overlap, leave holes, or do not end where the file does."""
    place = start
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].place, item[1].nbytes)):
        if stored.place != place:
            raise CheckpointError(f"the tensor '{name:.60}' does not begin where the one before it ends")
        place += stored.nbytes
    if place != end:
        raise CheckpointError(f"its tensors end at byte {place:,} and the file at {end:,}")


def _contiguous(shape: list[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for side in reversed(shape):
        strides.append(step)
        step *= max(side, 1)
    return tuple(reversed(strides))
