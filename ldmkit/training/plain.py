"""Records as plain data with their tensors set apart: what a cache writes, and what it compares.

    {"prompt": "a cat", "crop": tensor}  <->  {"prompt": "a cat", "crop": {"tensor": where it lies}}

Nothing here is a pickle: what comes back is text, numbers, lists, tuples, mappings, paths, tensors, arrays, and the
objects of a layout, each as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmkit.conditioners.layout_tokens import Box, Point
from ldmkit.weights.record import Digest
from ldmkit.weights.tensor_file import NAMES, memory

OBJECTS = {"Box": Box, "Point": Point}


def plain(value: Any, apart: Callable[[Tensor], Any], what: str) -> Any:  # noqa: ANN401 - whatever a record holds
    """What JSON holds of a value.

    Args:
        value: text, numbers, None, paths, tensors, arrays, boxes and points, and lists, tuples and mappings of these.
        apart: called with every tensor, dense and on the CPU; gives what JSON holds in its place.
        what: how a message names the value.

    Raises:
        TypeError: anything else.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [plain(item, apart, what) for item in value]
        case tuple():
            return {"tuple": [plain(item, apart, what) for item in value]}
        case Mapping() if all(isinstance(key, str) for key in value):
            return {"mapping": {key: plain(item, apart, what) for key, item in value.items()}}
        case Box() | Point():
            return {type(value).__name__: plain(list(astuple(value)), apart, what)}
        case os.PathLike():
            return {"path": os.fspath(value)}
        case np.generic():
            return plain(value.item(), apart, what)
        case np.ndarray() if value.dtype.kind in "biuf":
            return {"array": apart(torch.from_numpy(np.ascontiguousarray(value)))}
        case Tensor() if value.dtype in NAMES and value.layout == torch.strided:
            return {"tensor": apart(value.detach().cpu().contiguous())}
    raise TypeError(
        f"{what} is {type(value).__name__}; a cache keeps text, numbers, paths, tensors, arrays and boxes, and lists "
        "and mappings of these: make the records with ldmkit.data.Records, which reads pictures"
    )


def restored(data: Any, tensor: Callable[[Any], Tensor]) -> Any:  # noqa: ANN401 - what a JSON parser gives
    """The value that :func:`plain` wrote.

    Args:
        data: what JSON held.
        tensor: gives the tensor back for what stands in its place.

    Raises:
        ValueError: something that :func:`plain` does not write.
    """
    match data:
        case None | bool() | int() | float() | str():
            return data
        case list():
            return [restored(item, tensor) for item in data]
        case {"tuple": list(items)}:
            return tuple(restored(item, tensor) for item in items)
        case {"mapping": dict(items)}:
            return {key: restored(item, tensor) for key, item in items.items()}
        case {"path": str(path)}:
            return Path(path)
        case {"array": where}:
            return tensor(where).numpy()
        case {"tensor": where}:
            return tensor(where)
        case {"Box": list(given)} | {"Point": list(given)}:
            return OBJECTS[next(iter(data))](*restored(given, tensor))
    raise ValueError(f"{data!r:.80} is nothing that a cache writes")


def content(value: Any, what: str) -> bytes:  # noqa: ANN401 - whatever a record holds
    """SHA-256 of a value: equal for equal text, numbers and tensors, and for nothing else.

    Raises:
        TypeError: as :func:`plain`.
    """
    data = plain(value, lambda tensor: Digest.of(tensor.dtype, tensor.shape, [memory(tensor)]).line(), what)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).digest()
