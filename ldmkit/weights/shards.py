"""A model over one file or several: where they lie, how they are opened as one, how they replace an older model.

A set of shards has an index beside it, ``NAME.index.json``, in the layout that other libraries read too. Names of
shards carry the content hash, so that two models never share a shard's name, and **the index decides**: shards are
renamed into place before it, an older single file is removed after it. Whoever is killed in between leaves the old
model or the new one, complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldmkit.errors import CheckpointError
from ldmkit.weights.atomic import sync_folder
from ldmkit.weights.record import KEY, Digest, Record, read_record
from ldmkit.weights.tensor_file import MAX_HEADER, Entry, TensorFile, nbytes, opened

SUFFIX = ".index.json"


@dataclass(frozen=True)
class Saved:
    """A model's files, open: one, or a complete set of shards."""

    path: Path
    record: Record
    files: Sequence[TensorFile]

    def entries(self) -> dict[str, tuple[TensorFile, Entry]]:
        """name -> (file, entry), in the order in which the bytes lie."""
        return {
            entry.name: (file, entry)
            for file in self.files
            for entry in sorted(file.entries.values(), key=lambda entry: entry.start)
        }

    def digests(self) -> dict[str, Digest]:
        """The digest of every tensor; reads all of them."""
        entries = self.entries().items()
        return {name: Digest.of(entry.dtype, entry.shape, file.chunks(name)) for name, (file, entry) in entries}


@contextmanager
def opened_model(path: Path) -> Iterator[Saved]:
    """Open a model's file, or every shard of its set, with the headers checked; no tensor is read.

    Args:
        path: the file, the index of a set, or the name under which a set was saved.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not a file of ours, damaged, or a set that is incomplete or mixed.
    """
    index = index_of(path)
    with ExitStack() as stack:
        if index is not None:
            yield _opened_set(index, stack)
            return
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        file = stack.enter_context(opened(path))
        record = read_record(file.metadata, path)
        if record.shard is not None:
            number, count, name = record.shard
            raise CheckpointError(f"{path} is shard {number} of {count} of a model: load {path.with_name(name)}")
        yield Saved(path, record, [file])


def index_of(path: Path) -> Path | None:
    """The index that decides what ``path`` means; None where it is a single file.

    Raises:
        CheckpointError: ``path`` is an index of another program, or an index of ours is damaged.
    """
    if path.name.endswith(SUFFIX):
        if path.is_file() and not _is_ours(path):
            raise CheckpointError(f"{path} is an index of another program: an importer reads those")
        return path
    index = path.with_name(path.name + SUFFIX)
    return index if index.is_file() and _is_ours(index) else None


def refuse_taken(path: Path) -> None:
    """Refuse a place that an index of another program would claim.

    Raises:
        FileExistsError: there is such an index.
    """
    index = path.with_name(path.name + SUFFIX)
    if index.exists() and not _is_ours(index):
        raise FileExistsError(
            f"{index} is an index of another program, which {path.name} would contradict: save elsewhere"
        )


def split(tensors: Mapping[str, Tensor], most: int) -> list[list[str]]:
    """Names by shard, in their order: each of at most ``most`` bytes, unless one tensor is larger."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, value in tensors.items():
        if groups[-1] and size + nbytes(value) > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes(value)
    return groups


def shard_names(path: Path, content: str, count: int) -> list[str]:
    """The shards' names: of the set's name, the content and the number."""
    stem = path.name.removesuffix(".safetensors")
    return [f"{stem}-{content[:8]}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def index_text(content: str, shards: Mapping[str, Sequence[str]], total: int) -> str:
    """The index as JSON, of shard -> names of its tensors."""
    ours = {"content": content, "files": list(shards)}
    weights = {name: file for file, names in shards.items() for name in names}
    return json.dumps({"metadata": {"total_size": total, KEY: ours}, "weight_map": weights}, indent=1)


def remove_older(path: Path, keep: Sequence[str]) -> None:
    """Remove what an older model of this name left: its index or its single file, then its shards.

    Args:
        path: the name that was saved.
        keep: the names of the files of the model that is there now.
    """
    index = path.with_name(path.name + SUFFIX)
    for old in (index, path):
        if old.name not in keep and old.is_file():
            old.unlink()
            sync_folder(path.parent)
    stem = re.escape(path.name.removesuffix(".safetensors"))
    for old in path.parent.iterdir():
        shard = re.fullmatch(rf"{stem}-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}}\.safetensors", old.name)
        if shard and old.name not in keep and _belongs_to(old, index.name):
            old.unlink(missing_ok=True)


def _belongs_to(shard: Path, index: str) -> bool:
    try:
        with opened(shard) as file:
            record = read_record(file.metadata, shard)
    except CheckpointError:
        return False
    return record.shard is not None and record.shard[2] == index


def _is_ours(index: Path) -> bool:
    return KEY in _json(index).get("metadata", {})


def _json(index: Path) -> dict[str, Any]:
    try:
        if index.stat().st_size > MAX_HEADER:
            raise ValueError(f"it has more than {MAX_HEADER} bytes")
        data = json.loads(index.read_bytes())
        if not isinstance(data, dict) or not isinstance(data.get("metadata", {}), dict):
            raise ValueError("it is no table with metadata")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the index {index} cannot be read: {error}") from error
    return data


def _opened_set(index: Path, stack: ExitStack) -> Saved:
    if not index.is_file():
        raise FileNotFoundError(f"there is no file {index}")
    content, names, weights = _index(index)
    files = []
    for name in names:
        file = stack.enter_context(opened(_inside(index, name)))
        if {entry for entry, where in weights.items() if where == name} != file.entries.keys():
            raise CheckpointError(f"{file.path} holds other tensors than {index.name} says")
        files.append(file)
    records = [read_record(file.metadata, file.path) for file in files]
    numbers = [record.shard[:2] if record.shard else None for record in records]
    whole = sorted(filter(None, numbers)) == [(number, len(files)) for number in range(1, len(files) + 1)]
    if not whole or any(record.content != content or not record.same_model(records[0]) for record in records):
        raise CheckpointError(
            f"the shards that {index} lists are not one model: they are of {len(files)} different saves"
        )
    return Saved(index, records[0], files)


def _index(index: Path) -> tuple[str, list[str], dict[str, str]]:
    """(content hash, files, tensor -> file), of the right types and about the same files."""
    match _json(index):
        case {"metadata": {"ldmkit": {"content": str(content), "files": list(names)}}, "weight_map": dict(weights)}:
            if names and all(isinstance(name, str) for name in names) and all(f in names for f in weights.values()):
                return content, names, weights
    raise CheckpointError(f"the index {index} cannot be read: its files and its tensors do not fit together")


def _inside(index: Path, name: str) -> Path:
    """A shard as a regular file in the folder of its index, and nowhere else."""
    path = index.parent / name
    if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{index} lists {name!r:.80}, which is no name of a file beside it: refused")
    if not path.exists() and not path.is_symlink():
        raise CheckpointError(f"the model of {index} is incomplete: there is no {name} beside it")
    try:
        stays = path.resolve(strict=True).is_relative_to(index.parent.resolve())
    except (OSError, RuntimeError):
        stays = False
    if not stays or not path.is_file():
        raise CheckpointError(f"{index} lists {name!r:.80}, which is no regular file in its folder: refused")
    return path
