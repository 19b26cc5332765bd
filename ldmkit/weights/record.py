"""What our files say about themselves: the metadata key ``ldmkit``, as JSON.

The content hash is over everything that makes the model, so that a file can be told from a damaged one:

    SHA-256( record without its own hash and shard  |  for each name in order: name, dtype, shape, SHA-256(bytes) )
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ldmkit._version import __version__
from ldmkit.errors import CheckpointError
from ldmkit.parts import Recipe
from ldmkit.weights.tensor_file import NAMES

KEY = "ldmkit"
FORMAT_VERSION = 2
"""1 had no content hash and no shards; its files are read."""


@dataclass(frozen=True)
class Record:
    """A model's file without its tensors.

    Args:
        recipe: how the model is composed.
        providers: distribution -> version of whoever provides a part.
        tied: name of a tensor -> name under which it is stored.
        casts: buffer that is not stored -> its type, where that is not what its part builds.
        content: the hash in hexadecimal digits; empty in files of format 1.
        shard: (number from 1, how many, name of their index); None for a model in one file.
        library_version: of the ldmkit that wrote it.
    """

    recipe: Recipe
    providers: Mapping[str, str]
    tied: Mapping[str, str] = field(default_factory=dict)
    casts: Mapping[str, str] = field(default_factory=dict)
    content: str = ""
    shard: tuple[int, int, str] | None = None
    library_version: str = __version__

    def to_metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file."""
        shard = {} if self.shard is None else {"shard": list(self.shard)}
        return {"format": "pt", KEY: json.dumps({**self._hashed(), "content": self.content, **shard})}

    def _hashed(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "library_version": self.library_version,
            "recipe": self.recipe.to_json(),
            "providers": dict(self.providers),
            "tied": dict(self.tied),
            "casts": dict(self.casts),
        }

    def hash_of(self, digests: Mapping[str, Digest]) -> str:
        """The content hash of this record with tensors of these digests."""
        whole = hashlib.sha256(json.dumps(self._hashed(), sort_keys=True).encode())
        for name in sorted(digests):
            whole.update(json.dumps([name, *digests[name].line()]).encode())
        return whole.hexdigest()

    def same_model(self, other: Record) -> bool:
        """Whether two shards belong together."""
        return replace(self, shard=None) == replace(other, shard=None)


@dataclass(frozen=True)
class Digest:
    """A tensor's type, shape and SHA-256."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str

    @classmethod
    def of(cls, dtype: torch.dtype, shape: Iterable[int], pieces: Iterable[memoryview]) -> Digest:
        """The digest of a tensor whose bytes come in pieces."""
        whole = hashlib.sha256()
        for piece in pieces:
            whole.update(piece)
        return cls(dtype, tuple(shape), whole.hexdigest())

    def line(self) -> list[Any]:
        """As it enters the content hash."""
        return [NAMES[self.dtype], list(self.shape), self.sha256]


def read_record(metadata: Mapping[str, str], path: Path) -> Record:
    """The record in a file's metadata.

    Raises:
        CheckpointError: it is not a file of ours, is damaged, or is of a newer format.
    """
    if KEY not in metadata:
        raise CheckpointError(
            f"{path} holds tensors but no recipe of ldmkit: files of other programs are read by an importer"
        )
    try:
        data = json.loads(metadata[KEY])
        if data["format_version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} was written by ldmkit {data['library_version']} in format {data['format_version']}; this "
                f"is ldmkit {__version__}, which reads up to {FORMAT_VERSION}: upgrade ldmkit"
            )
        return Record(
            recipe=Recipe.from_json(data["recipe"]),
            providers=_texts(data, "providers"),
            tied=_texts(data, "tied"),
            casts=_texts(data, "casts") if data["format_version"] > 1 else {},
            content=data["content"] if data["format_version"] > 1 else "",
            shard=_shard(data.get("shard")),
            library_version=str(data["library_version"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the recipe in {path} cannot be read: {error}") from error


def _texts(data: Mapping[str, Any], key: str) -> dict[str, str]:
    value = data[key]
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"'{key}' is no table of texts")
    return value


def _shard(data: Any) -> tuple[int, int, str] | None:  # noqa: ANN401 - what a JSON parser gives
    match data:
        case None:
            return None
        case [int(number), int(count), str(index)]:
            return number, count, index
    raise ValueError(f"'shard' is [number, count, index], got {data!r:.80}")
