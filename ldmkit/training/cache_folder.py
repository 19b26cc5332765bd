"""A folder of records that were dear to compute: shards, and a manifest that says of what they were made.

    cache.json           what the records were made of, and the shards of a finished cache
    00000.safetensors    told, ends: the records as JSON, one after the other
                         content: (n, 32), the SHA-256 of what each was made of
                         and their tensors, those of one type and shape in one stack

A shard appears complete under its name or not at all, so that whoever is killed loses the shard at hand. A record is
read where it lies: nothing is held open, and a folder can be read by any number of processes at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmkit.composition import part_of
from ldmkit.errors import CheckpointError, CompositionError
from ldmkit.training.parallel import barrier, gathered, rank
from ldmkit.training.plain import plain, restored
from ldmkit.weights.atomic import write_atomically
from ldmkit.weights.faithful import bare
from ldmkit.weights.record import Digest
from ldmkit.weights.tensor_file import DTYPES, NAMES, Entry, TensorFile, memory, opened

MANIFEST = "cache.json"
FORMAT = 1
KEY = "ldmkit-cache"
SHARD = re.compile(r"\d{5,}\.safetensors")


@dataclass(frozen=True, eq=False)
class Shard:
    """A file of records, whose head was read.

    Args:
        path: the file.
        entries: its tensors.
        ends: (n,) int64, where each record's JSON ends.
        digests: tensor -> SHA-256 of its bytes.
    """

    path: Path
    entries: Mapping[str, Entry]
    ends: Tensor
    digests: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.ends)

    def record(self, row: int, only: str | None = None) -> dict[str, Any]:
        """The record of a row.

        Args:
            row: in [0, n - 1].
            only: the one key that is asked for; None: all of them.

        Raises:
            CheckpointError: the file is not there any more, or damaged.
        """
        first = int(self.ends[row - 1]) if row else 0
        try:
            with self.path.open("rb", buffering=0) as file:
                told = self._rows(file, "told", first, int(self.ends[row]) - first)
                data = json.loads(bytes(memory(told)))
                wanted = data if only is None else {only: data[only]}
                return {key: restored(value, lambda at: self._tensor(file, *at)) for key, value in wanted.items()}
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(
                f"{self.path} is damaged or gone, at its record {row}: {error}. {_remedy(self.path.parent)}"
            ) from error

    def contents(self) -> list[bytes]:
        """What each record was made of, as 32 bytes.

        Raises:
            CheckpointError: as :meth:`record`.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                return [bytes(memory(row)) for row in self._rows(file, "content", 0, len(self))]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} is damaged or gone: {error}. {_remedy(self.path.parent)}") from error

    def verify(self) -> None:
        """Read every byte.

        Raises:
            CheckpointError: one differs from what was written.
        """
        with opened(self.path) as file:
            for name, entry in file.entries.items():
                if Digest.of(entry.dtype, entry.shape, file.chunks(name)).sha256 != self.digests.get(name):
                    raise CheckpointError(
                        f"{self.path} is damaged: '{name}' is not what was written. {_remedy(self.path.parent)}"
                    )

    def _tensor(self, file: FileIO, name: str, row: int, dtype: str) -> Tensor:
        return self._rows(file, name, row, 1)[0].to(DTYPES[dtype])

    def _rows(self, file: FileIO, name: str, first: int, count: int) -> Tensor:
        entry = self.entries[name]
        if not 0 <= first <= first + count <= entry.shape[0]:
            raise ValueError(f"it has no rows {first} to {first + count - 1} of '{name}'")
        rows = torch.empty((count, *entry.shape[1:]), dtype=entry.dtype)
        into = memory(rows)
        file.seek(entry.start + first * (entry.stop - entry.start) // max(entry.shape[0], 1))
        while into:
            read = file.readinto(into)
            if not read:
                raise ValueError("it ends too early")
            into = into[read:]
        return rows


class Packing:
    """The records of one shard, on their way to it. A tensor that occurs twice is kept once."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.contents: list[bytes] = []
        self.stacks: dict[str, list[Tensor]] = {}
        self.rows: dict[tuple[str, str], int] = {}

    def add(self, record: Mapping[str, Any], content: bytes) -> None:
        """One more record.

        Raises:
            TypeError: it holds what no cache keeps.
        """
        data = {key: plain(value, self._apart, f"'{key}' of a record") for key, value in record.items()}
        self.told.append(json.dumps(data).encode())
        self.contents.append(content)

    def tensors(self) -> dict[str, Tensor]:
        """What the file holds."""
        ends = torch.tensor([len(text) for text in self.told]).cumsum(0)
        told = torch.frombuffer(bytearray(b"".join(self.told)), dtype=torch.uint8)
        content = torch.frombuffer(bytearray(b"".join(self.contents)), dtype=torch.uint8).view(-1, 32)
        stacks = {name: torch.stack(rows) for name, rows in self.stacks.items()}
        return {"told": told, "ends": ends, "content": content, **stacks}

    def _apart(self, tensor: Tensor) -> list[Any]:
        """[stack, row, type]; labels below 256 take a byte each."""
        dtype = NAMES[tensor.dtype]
        if dtype == "I64" and tensor.ndim > 1 and torch.equal(tensor, tensor.to(torch.uint8).to(torch.int64)):
            tensor = tensor.to(torch.uint8)
        name = f"{NAMES[tensor.dtype]} {'x'.join(map(str, tensor.shape))}"
        rows = self.stacks.setdefault(name, [])
        digest = Digest.of(tensor.dtype, tensor.shape, [memory(tensor)]).sha256
        row = self.rows.setdefault((name, digest), len(rows))
        if row == len(rows):
            rows.append(tensor)
        return [name, row, dtype]


class CacheFolder:
    """A cache on disk, begun or opened; every process makes it.

    Args:
        path: the folder; made if it is not there.
        identity: plain data on what the records are made of, by name.

    Raises:
        CheckpointError: the folder's cache was made of something else, lacks a shard, or is damaged.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.mark = hashlib.sha256(json.dumps([FORMAT, self.identity], sort_keys=True).encode()).hexdigest()
        if rank() == 0 and not (path / MANIFEST).exists():
            path.mkdir(parents=True, exist_ok=True)
            self._write([], None)
        barrier()
        manifest = self._manifest()
        _check_same(path, manifest["identity"], self.identity)
        self.notes = manifest["notes"]
        self.finished = manifest["shards"]
        there = self._there()
        if lost := [name for name in self.finished if name not in there]:
            raise CheckpointError(f"the shard {path / lost[0]} is gone, {len(lost)} in all. {_remedy(path)}")
        # What the first process sees counts for all: another may already be writing.
        self.shards = {name: self._opened(path / name) for name in gathered(sorted(there))[0]}

    def write(self, name: str, packing: Packing) -> None:
        """Add a shard."""
        tensors = packing.tensors()
        digests = {key: Digest.of(value.dtype, value.shape, [memory(value)]).sha256 for key, value in tensors.items()}
        metadata = {KEY: json.dumps({"mark": self.mark, "digests": digests})}
        write_atomically(self.path / name, lambda partial: save_file(tensors, partial, metadata))

    def free(self, count: int) -> list[str]:
        """Names for so many further shards."""
        first = max((int(name.partition(".")[0]) + 1 for name in self.shards), default=0)
        return [shard_name(number) for number in range(first, first + count)]

    def contents(self) -> set[bytes]:
        """What the records were made of."""
        return {content for shard in self.shards.values() for content in shard.contents()}

    def verify(self) -> None:
        """Read every byte.

        Raises:
            CheckpointError: one differs from what was written.
        """
        for shard in self.shards.values():
            shard.verify()

    def finish(self, notes: Any = None) -> list[Shard]:  # noqa: ANN401 - plain data
        """Say that the shards there are, are all, when every process has written its own.

        Args:
            notes: plain data, given back as ``notes`` when the folder is opened again.

        Returns:
            The shards in the order of their names.
        """
        barrier()
        names = gathered(sorted(self._there(), key=lambda name: (len(name), name)))[0]
        if rank() == 0 and (names, notes) != (self.finished, self.notes):
            self._write(names, notes)
        barrier()
        return [self.shards.get(name) or self._opened(self.path / name) for name in names]

    def _there(self) -> set[str]:
        return {file.name for file in self.path.iterdir() if SHARD.fullmatch(file.name)}

    def _write(self, names: Sequence[str], notes: Any) -> None:  # noqa: ANN401
        data = {"format": FORMAT, "identity": self.identity, "shards": list(names), "notes": notes}
        text = json.dumps(data, indent=1)
        write_atomically(self.path / MANIFEST, lambda partial: partial.write_text(text, encoding="utf-8"))

    def _manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            match json.loads(path.read_text(encoding="utf-8")):
                case {"format": 1, "identity": dict(), "shards": list(), "notes": _} as data:
                    return cast(dict[str, Any], data)
                case {"format": int(number)} if number != FORMAT:
                    raise ValueError(f"it is of format {number}, and this ldmkit reads {FORMAT}")
            raise ValueError("it lacks what a manifest has")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}. {_remedy(self.path)}") from error

    def _opened(self, path: Path) -> Shard:
        try:
            with opened(path) as file:
                told = json.loads(file.metadata[KEY])
                if told["mark"] != self.mark:
                    raise ValueError(f"it belongs to another cache than {MANIFEST} beside it")
                return Shard(path, file.entries, _ends(file), told["digests"])
        except (CheckpointError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"the shard {path} cannot be read: {error}. {_remedy(self.path)}") from error


def shard_name(number: int) -> str:
    """The name of a shard."""
    return f"{number:05d}.safetensors"


def made_by(kind: str, component: object) -> dict[str, Any]:
    """What a component's results depend on: its name and options, and a hash of its weights.

    Args:
        kind: of the registry.
        component: a registered one, or any other module, which is named by its class.
    """
    module = bare(cast(nn.Module, component))
    try:
        part = part_of(kind, module).to_json()
    except CompositionError:
        part = {"class": f"{type(module).__module__}.{type(module).__qualname__}"}
    whole = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        whole.update(json.dumps([name, *Digest.of(value.dtype, value.shape, [memory(value)]).line()]).encode())
    return {kind: part, f"weights of the {kind}": whole.hexdigest()}


def spread(count: int, most: int = 16) -> list[int]:
    """At most so many places of [0, count - 1], from the first to the last."""
    return sorted({i * (count - 1) // max(most - 1, 1) for i in range(most)}) if count else []


def _ends(file: TensorFile) -> Tensor:
    ends = torch.empty(file.entries["ends"].shape, dtype=file.entries["ends"].dtype)
    file.read("ends", ends)
    return ends


def _check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse an identity that differs, naming the first difference."""
    name = ""
    was: Any = there
    now: Any = here
    while was != now and isinstance(was, Mapping) and isinstance(now, Mapping):
        keys = [*now, *sorted(was.keys() - now.keys())]
        key = next(key for key in keys if was.get(key) != now.get(key))
        name, was, now = f"{name}.{key}" if name else key, was.get(key), now.get(key)
    if was != now:
        raise CheckpointError(
            f"{path} is stale: '{name}' was {_said(was)}, and is {_said(now)}. Delete the folder, or give another one"
        )


def _said(value: Any) -> str:  # noqa: ANN401 - plain data
    return "not said" if value is None else f"{json.dumps(value):.300}"


def _remedy(path: Path) -> str:
    return f"Delete {path}, and it is made anew"
