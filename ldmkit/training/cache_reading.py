"""What a cache is made of: records by place, each with a seed of its own, and what tells them from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldmkit.data.rows import Records
from ldmkit.errors import BatchError
from ldmkit.images import read_images
from ldmkit.training.contract import Augment, Record
from ldmkit.training.data import Data
from ldmkit.training.order import hashed
from ldmkit.training.plain import content, plain
from ldmkit.weights.record import Digest
from ldmkit.weights.tensor_file import memory


@runtime_checkable
class Fingerprinted(Protocol):
    """Data that can say cheaply whether they are the same as before."""

    def fingerprint(self) -> str:
        """A text that changes when a record does."""


@dataclass(frozen=True)
class Views:
    """Data gone through several times, each record augmented by a seed of its own: itself data by place.

    Args:
        data: N records.
        augment: None: nothing.
        passes: k; there are k N records.
        seed: of everything drawn.

    Raises:
        TypeError: data without a length and an index.
        ValueError: no data, or a seed outside [0, 2**64).
    """

    data: Data
    augment: Augment | None
    passes: int
    seed: int

    def __post_init__(self) -> None:
        if not isinstance(self.data, Data):
            raise TypeError(
                f"a cache needs data with a length and an index, got {type(self.data).__name__}: make list(...) of "
                "what is only iterated over"
            )
        if not len(self.data):
            raise ValueError(f"{type(self.data).__name__} is empty: there is nothing to encode")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"a seed must lie in [0, 2**64), got {self.seed}")

    def __len__(self) -> int:
        return len(self.data) * self.passes

    def __getitem__(self, place: int) -> Record:
        """The record of a place, with torch's generator at its seed."""
        turn, at = divmod(place, len(self.data))
        seed = hashed(self.seed, turn, at)
        torch.default_generator.manual_seed(seed)
        record: Record = self.data[at]
        return record if self.augment is None else self.augment(record, seed)


@dataclass(frozen=True, eq=False)
class Image:
    """A record on its way to the cache.

    Args:
        place: of the record.
        rest: the record without its target.
        target: (C, H, W) in [0, 1].
        content: what the cache remembers it by.
    """

    place: int
    rest: dict[str, Any]
    target: Tensor
    content: bytes


@dataclass(frozen=True)
class Images(Dataset[Image]):
    """Records whose targets are read as the first stage takes them.

    Args:
        views: the records.
        channels: C.
    """

    views: Views
    channels: int

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, place: int) -> Image:
        """The image of a place.

        Raises:
            BatchError: it has no target.
        """
        record = self.views[place]
        if "target" not in record:
            raise BatchError(f"record {place} has no 'target', the image to be encoded; it has {sorted(record)}")
        target = read_images([record["target"]], f"target of record {place}", self.channels)[0]
        rest = {key: value for key, value in record.items() if key != "target"}
        return Image(place, rest, target, content({**rest, "target": target}, f"record {place}"))


def in_order(images: Images, places: Iterable[range], workers: int) -> Iterator[Image]:
    """The images of the places, in order."""
    order = list(chain.from_iterable(places))
    loader = DataLoader(
        images, batch_size=None, sampler=order, num_workers=workers, collate_fn=as_it_is, generator=torch.Generator()
    )
    return iter(loader)


def as_it_is(one: Any) -> Any:  # noqa: ANN401
    """What a loader without batches would otherwise make tensors of."""
    return one


def portions(images: Iterable[Image], most: int) -> Iterator[list[Image]]:
    """Neighbours of one size, so many at most."""
    part: list[Image] = []
    for image in images:
        if part and (len(part) == most or image.target.shape != part[0].target.shape):
            yield part
            part = []
        part.append(image)
    if part:
        yield part


def fingerprint(data: Data) -> str | None:
    """What can be told of all records without reading them; None: nothing.

    Of :class:`~ldmkit.data.rows.Records` over a list: the rows, and of every file that they name by a ``Path`` its name
    and size.
    """
    if isinstance(data, Fingerprinted):
        return data.fingerprint()
    if not isinstance(data, Records) or not isinstance(data.rows, list | tuple):
        return None
    whole = hashlib.sha256()
    try:
        for row in data.rows:
            files = {key: (value.name, value.stat().st_size) for key, value in row.items() if isinstance(value, Path)}
            whole.update(json.dumps(plain({**row, **files}, _digest, "a row"), sort_keys=True).encode())
    except (OSError, TypeError):
        return None
    return whole.hexdigest()


def _digest(tensor: Tensor) -> list[Any]:
    return Digest.of(tensor.dtype, tensor.shape, [memory(tensor)]).line()
