"""The samples of a run on their way to one process: in order, augmented by their seeds, in parts of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from ldmkit.training.contract import Augment, Record
from ldmkit.training.order import indices, sample_seeds


@runtime_checkable
class Data(Protocol):
    """Records by place: anything with a length and an index."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Any: ...  # noqa: ANN401 - a record, of whatever mapping


@dataclass(frozen=True)
class Portion:
    """What one process sees at once.

    Args:
        records: the samples.
        seeds: one per sample.
        places: of the samples in the data.
    """

    records: Sequence[Record]
    seeds: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Feed:
    """The share of one process in a run's data.

    Args:
        data: all samples.
        augment: applied to each sample with its seed; None: nothing.
        seed: of the run.
        batch: samples of a step, over all processes; a multiple of ``world * parts``.
        rank: of this process.
        world: how many processes there are.
        parts: portions of a step.
        workers: processes that load; 0: this one.

    Raises:
        ValueError: a batch that cannot be shared equally, or no data.
    """

    data: Data
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
        if not len(self.data):
            raise ValueError(f"{type(self.data).__name__} is empty: there is nothing to train on")

    def first(self, count: int) -> list[Record]:
        """The first so many samples of the run, the same in every process."""
        read = _Reading(self.data, self.augment)
        places = indices(self.seed, 0, count, len(self.data)).tolist()
        return [read[pair] for pair in zip(places, sample_seeds(self.seed, 0, count), strict=True)]

    def steps(self, step: int, end: int) -> Iterator[list[Portion]]:
        """The portions of each step from ``step`` on, before ``end``.

        Raises:
            RuntimeError: the data raised for some place, which the message names.
        """
        loader: Iterator[list[Record]] = iter(
            DataLoader(
                _Reading(self.data, self.augment),
                batch_sampler=(pairs for at in range(step, end) for pairs in self._pairs(at)),
                collate_fn=list,
                num_workers=self.workers,
                generator=torch.Generator(),  # its own: making an iterator would draw from the global one
            )
        )
        for at in range(step, end):
            yield [Portion(next(loader), *_columns(pairs)) for pairs in self._pairs(at)]

    def _pairs(self, step: int) -> list[list[tuple[int, int]]]:
        """(place, seed) of each sample of this process, by portion."""
        share = self.batch // self.world
        first = step * self.batch + self.rank * share
        places = indices(self.seed, first, share, len(self.data)).tolist()
        pairs = list(zip(places, sample_seeds(self.seed, first, share), strict=True))
        size = share // self.parts
        return [pairs[at : at + size] for at in range(0, share, size)]


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(seed for _, seed in pairs), tuple(place for place, _ in pairs)


class _Reading(Dataset[Record]):
    """Reads (place, seed), with torch's generator at the seed, for data that draw from it."""

    def __init__(self, data: Data, augment: Augment | None) -> None:
        self.data = data
        self.augment = augment

    def __getitem__(self, pair: tuple[int, int]) -> Record:
        place, seed = pair
        torch.default_generator.manual_seed(seed)
        try:
            record: Record = self.data[place]
            return record if self.augment is None else self.augment(record, seed)
        except Exception as error:
            raise RuntimeError(
                f"sample {place} of {type(self.data).__name__} cannot be read: {type(error).__name__}: {error}"
            ) from error
