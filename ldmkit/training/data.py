"""The samples of a run on their way to one process: in order, augmented by their seeds, in parts of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ldmkit.training.contract import Augment, Record
from ldmkit.training.order import indices, sample_seeds
from ldmkit.training.parallel import gathered


@runtime_checkable
class Data(Protocol):
    """Records by place: anything with a length and an index."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Any: ...  # noqa: ANN401 - a record, of whatever mapping


@runtime_checkable
class Streaming(Protocol):
    """Records in an order of their own: a :class:`ldmkit.data.Stream` or :class:`ldmkit.data.SplitStream`."""

    def check(self, batch: int, readers: int) -> None:
        """Refuse a batch, or a number of readers, that cannot be served."""

    def stretch(self, batch: int, step: int, first: int, last: int) -> Iterator[list[Any]]:
        """For each step from ``step`` on, the items of the positions ``first`` to ``last - 1`` of the batch."""

    @property
    def read(self) -> Callable[[Any], Any]:
        """Makes the record of an item."""


@dataclass(frozen=True)
class Portion:
    """What one process sees at once.

    Args:
        records: the samples.
        seeds: one per sample.
        places: of the samples in the data; of a stream, their numbers in the run.
    """

    records: Sequence[Record]
    seeds: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Feed:
    """The share of one process in a run's data.

    Args:
        data: all samples, by place or as a stream.
        augment: applied to each sample with its seed; None: nothing.
        seed: of the run.
        batch: samples of a step, over all processes; a multiple of ``world * parts``.
        rank: of this process.
        world: how many processes there are.
        parts: portions of a step.
        workers: processes that load; 0: this one.

    Raises:
        ValueError: a batch that cannot be shared equally, or no data.
        TypeError: data that are neither read by place nor a stream.
    """

    data: Data | Streaming
    augment: Augment | None
    seed: int
    batch: int
    rank: int = 0
    world: int = 1
    parts: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch % (self.world * self.parts):
            raise ValueError(
                f"a batch of {self.batch} cannot be shared equally by {self.world} processes in {self.parts} parts: "
                f"take a multiple of {self.world * self.parts}"
            )
        if isinstance(self.data, Streaming):
            self.data.check(self.batch, self.world * max(1, self.workers))
        elif not isinstance(self.data, Data):
            raise TypeError(
                f"data are read by place or streamed, and {type(self.data).__name__} has no length and index: "
                "Stream(lambda epoch, lane: ...) of ldmkit.data takes what can only be iterated over"
            )
        elif not len(self.data):
            raise ValueError(f"{type(self.data).__name__} is empty: there is nothing to train on")

    @property
    def samples(self) -> int | None:
        """How many samples there are; None: nobody knows how many a stream has."""
        return None if isinstance(self.data, Streaming) else len(self.data)

    def first(self, count: int) -> list[Record]:
        """The first so many samples of the run, the same in every process.

        Of a stream all processes ask together, since the first one's are taken.
        """
        if isinstance(self.data, Streaming):
            steps = -(-count // self.batch)
            read = _Stretch(self.data, self.augment, self.seed, self.batch, (0, steps), (0, self.batch))
            records: list[Record] = gathered(list(chain.from_iterable(read))[:count])[0]
            return records
        placed = _Reading(self.data, self.augment)
        places = indices(self.seed, 0, count, len(self.data)).tolist()
        return [placed[pair] for pair in zip(places, sample_seeds(self.seed, 0, count), strict=True)]

    def steps(self, step: int, end: int) -> Iterator[list[Portion]]:
        """The portions of each step from ``step`` on, before ``end``.

        Raises:
            RuntimeError: the data raised for some place, which the message names.
        """
        if isinstance(self.data, Streaming):
            yield from self._streamed(self.data, step, end)
            return
        data = self.data
        loader: Iterator[list[Record]] = iter(
            DataLoader(
                _Reading(data, self.augment),
                batch_sampler=(pairs for at in range(step, end) for pairs in self._pairs(data, at)),
                collate_fn=list,
                num_workers=self.workers,
                generator=torch.Generator(),  # its own: making an iterator would draw from the global one
            )
        )
        for at in range(step, end):
            yield [Portion(next(loader), *_columns(pairs)) for pairs in self._pairs(data, at)]

    def _streamed(self, data: Streaming, step: int, end: int) -> Iterator[list[Portion]]:
        """As :meth:`steps`; each worker reads a part of every step, and they are joined in order."""
        share = self.batch // self.world
        size, own = share // self.parts, (self.rank * share, (self.rank + 1) * share)
        stretch = _Stretch(data, self.augment, self.seed, self.batch, (step, end), own)
        loader: Iterator[list[Record]] = iter(
            DataLoader(stretch, batch_size=None, num_workers=self.workers, generator=torch.Generator())
        )
        for at in range(step, end):
            records = list(chain.from_iterable(next(loader) for _ in range(max(1, self.workers))))
            first = at * self.batch + own[0]
            seeds, numbers = sample_seeds(self.seed, first, share), tuple(range(first, first + share))
            parts = [slice(i, i + size) for i in range(0, share, size)]
            yield [Portion(records[part], seeds[part], numbers[part]) for part in parts]

    def _pairs(self, data: Data, step: int) -> list[list[tuple[int, int]]]:
        """(place, seed) of each sample of this process, by portion."""
        share = self.batch // self.world
        first = step * self.batch + self.rank * share
        places = indices(self.seed, first, share, len(data)).tolist()
        pairs = list(zip(places, sample_seeds(self.seed, first, share), strict=True))
        size = share // self.parts
        return [pairs[at : at + size] for at in range(0, share, size)]


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(seed for _, seed in pairs), tuple(place for place, _ in pairs)


class _Reading(Dataset[Record]):
    """Reads (place, seed)."""

    def __init__(self, data: Data, augment: Augment | None) -> None:
        self.data = data
        self.augment = augment

    def __getitem__(self, pair: tuple[int, int]) -> Record:
        place, seed = pair
        return _record(lambda: self.data[place], self.augment, seed, f"sample {place} of {type(self.data).__name__}")


class _Stretch(IterableDataset[list[Record]]):
    """The records of a range of positions of each step; a worker's are its part of the range."""

    def __init__(
        self,
        data: Streaming,
        augment: Augment | None,
        seed: int,
        batch: int,
        steps: tuple[int, int],
        positions: tuple[int, int],
    ) -> None:
        self.data = data
        self.augment = augment
        self.seed = seed
        self.batch = batch
        self.steps = steps
        self.positions = positions

    def __iter__(self) -> Iterator[list[Record]]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        start, share = self.positions[0], self.positions[1] - self.positions[0]
        first, last = start + number * share // count, start + (number + 1) * share // count
        items = self.data.stretch(self.batch, self.steps[0], first, last)
        for step in range(*self.steps):
            sample = step * self.batch + first
            yield [self._read(item, sample + i) for i, item in enumerate(self._next(items, step))]

    def _next(self, items: Iterator[list[Any]], step: int) -> list[Any]:
        try:
            return next(items)
        except Exception as error:
            raise RuntimeError(
                f"{type(self.data).__name__} broke off in step {step}: {type(error).__name__}: {error}"
            ) from error

    def _read(self, item: object, sample: int) -> Record:
        (seed,) = sample_seeds(self.seed, sample, 1)
        return _record(
            partial(self._mapping, item), self.augment, seed, f"sample {sample} of {type(self.data).__name__}"
        )

    def _mapping(self, item: object) -> Record:
        record = self.data.read(item)
        if not isinstance(record, Mapping):
            raise TypeError(f"a record is a mapping, got {type(record).__name__}: give the stream read=, to make one")
        return record


def _record(get: Callable[[], Record], augment: Augment | None, seed: int, what: str) -> Record:
    """A record, augmented; torch's generator is at the seed, for data that draw from it."""
    torch.default_generator.manual_seed(seed)
    try:
        record = get()
        return record if augment is None else augment(record, seed)
    except Exception as error:
        raise RuntimeError(
            f"{what} cannot be read: {type(error).__name__}: {error}. Mend it, or leave it out"
        ) from error
