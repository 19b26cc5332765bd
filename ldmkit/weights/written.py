"""Writing a model's tensors and record: one pass over the tensors, then renames."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from ldmkit.weights.atomic import partial_file, sync_folder, synced, write_atomically
from ldmkit.weights.finite import is_finite
from ldmkit.weights.record import Digest, Record
from ldmkit.weights.shards import SUFFIX, index_text, refuse_taken, remove_older, shard_names, split
from ldmkit.weights.tensor_file import in_order, memory, nbytes, planned


@dataclass(frozen=True)
class _Part:
    """One file that is complete but for its content hash, under a temporary name."""

    partial: Path
    file: BinaryIO
    hash_at: int
    names: list[str]


def write_model(
    path: Path, record: Record, tensors: Mapping[str, Tensor], parameters: Collection[str], most: int
) -> Path:
    """Write tensors and record under a name, all or nothing.

    Args:
        path: the file, or the name of the set.
        record: what to say beside the tensors; the content hash is filled in.
        tensors: on any device; each is moved and hashed on its own.
        parameters: the names whose tensors may not be infinite either.
        most: bytes of tensors in one file; above it there are shards and an index.

    Returns:
        What to load: ``path``, or the index of the set.

    Raises:
        ValueError: a tensor is not finite.
        OSError: it cannot be written; what was there before is still there.
    """
    refuse_taken(path)
    groups = split(tensors, most)
    mark = secrets.token_hex(32)  # stands for the hash, which is known at the end
    digests: dict[str, Digest] = {}
    wrong: list[str] = []
    with ExitStack() as stack:
        parts = []
        for number, names in enumerate(groups, 1):
            shard = (number, len(groups), path.name + SUFFIX) if len(groups) > 1 else None
            partial, file = stack.enter_context(partial_file(path))
            own = replace(record, content=mark, shard=shard)
            parts.append(_write(partial, file, own, {name: tensors[name] for name in names}))
            for name in parts[-1].names:
                digests[name] = _append(file, tensors[name], name, parameters, wrong)
        if wrong:
            some = "; ".join(f"{name}: not finite" for name in sorted(wrong)[:20])
            raise ValueError(f"the model holds weights that are not finite, and a file of it could not be read: {some}")
        content = record.hash_of(digests)
        for part in parts:
            part.file.seek(part.hash_at)
            part.file.write(content.encode())
            synced(part.file)
        return _named(path, content, parts, sum(map(nbytes, tensors.values())))


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor lies in pieces over several processes, as ``fully_shard`` leaves it."""
    return type(tensor).__name__ == "DTensor"


def take_part(tensors: Mapping[str, Tensor], most: int) -> None:
    """Give the pieces of this process to the one that runs :func:`write_model` with the same arguments."""
    for names in split(tensors, most):
        for name in in_order({name: tensors[name] for name in names}):
            _whole(tensors[name])


def _write(partial: Path, file: BinaryIO, record: Record, tensors: Mapping[str, Tensor]) -> _Part:
    """Begin a file with its header; the tensors follow in the order of ``names``."""
    header, order = planned(tensors, record.to_metadata())
    file.write(header)
    return _Part(partial, file, header.index(record.content.encode()), order)


def _append(file: BinaryIO, tensor: Tensor, name: str, parameters: Collection[str], wrong: list[str]) -> Digest:
    """Write one tensor; its name goes to ``wrong`` where it is not finite."""
    value = _whole(tensor).detach().cpu().contiguous()
    if not is_finite(value, infinity=name not in parameters):
        wrong.append(name)
    data = memory(value)
    file.write(data)
    return Digest.of(value.dtype, value.shape, [data])


def _whole(tensor: Tensor) -> Tensor:
    """The tensor itself; one that is spread is put together, which every process must take part in."""
    if not is_spread(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]  # what DTensor adds
    return whole


def _named(path: Path, content: str, parts: list[_Part], total: int) -> Path:
    """Give complete files their names; the last rename is the one that decides."""
    if len(parts) == 1:
        parts[0].partial.replace(path)
        sync_folder(path.parent)
        remove_older(path, keep=[path.name])
        return path
    index = path.with_name(path.name + SUFFIX)
    shards = {}
    for part, name in zip(parts, shard_names(path, content, len(parts)), strict=True):
        part.partial.replace(path.with_name(name))
        shards[name] = part.names
    sync_folder(path.parent)
    text = index_text(content, shards, total)
    write_atomically(index, lambda partial: partial.write_text(text, encoding="utf-8"))
    remove_older(path, keep=[index.name, *shards])
    return index
