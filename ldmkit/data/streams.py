"""Streams: records that can only be iterated over, and how the readers of a run share them.

    open(epoch, lane) -> item, item, ...,    read(item) -> record

A reader is a process that trains, or one of its workers. What it reads of every step is a range of positions in the
batch. A :class:`Stream` is the same wherever it is opened, so the samples of a run do not depend on the number of
readers; a :class:`SplitStream` gives each reader a part of its own. Either begins again where it ends, so no reader
waits for another that has more, and goes on after a stop by passing over what was had. No item is read (decoded) that
is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

Record = Mapping[str, Any]


def as_it_is(item: Any) -> Any:  # noqa: ANN401 - whatever a stream gives
    """The item itself: the ``read`` of a stream whose items are records."""
    return item


@dataclass(frozen=True)
class Stream:
    """Records in an order of their own, the same in every process that opens them.

    The sample g of a run is the g-th item: the same for any number of processes and workers. With one lane every
    reader goes through everything and reads what is its own; with L lanes, each a fixed share of the data, a reader
    opens those alone that its positions belong to. An epoch is over for each lane on its own.

    A run that goes on passes over the items it had, and has the same samples as if it had never stopped, on three
    conditions: that ``open`` is a function of its arguments, that the epochs of a lane are equally long, and that
    nothing is drawn from a global generator.

    Args:
        open: ``(epoch, lane) -> items``, the items of one lane from the start, finite or endless.
        lanes: L, a divisor of the batch; best a multiple of the number of readers.
        read: makes the record of an item: decoding belongs here.

    Raises:
        ValueError: lanes below 1; when it is trained on, a batch that the lanes do not divide.
    """

    open: Callable[[int, int], Iterable[Any]]
    lanes: int = 1
    read: Callable[[Any], Record] = as_it_is

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise ValueError(f"a stream has at least 1 lane, got lanes={self.lanes}")

    def check(self, batch: int, readers: int) -> None:
        """Refuse a batch that the lanes do not share equally.

        Raises:
            ValueError: lanes that do not divide the batch.
        """
        if batch % self.lanes:
            raise ValueError(
                f"a batch of {batch} cannot be shared equally by {self.lanes} lanes of a stream: take a multiple of "
                f"{self.lanes}, or other lanes"
            )

    def stretch(self, batch: int, step: int, first: int, last: int) -> Iterator[list[Any]]:
        """The items of the positions ``first`` to ``last - 1`` of the batch, for each step from ``step`` on.

        Raises:
            ValueError: a lane without items.
        """
        width = batch // self.lanes
        opened = [
            (
                _endless(partial(self._epoch, lane), step * width, f"lane {lane} of {self.lanes}"),
                slice(max(first - lane * width, 0), last - lane * width),
            )
            for lane in range(first // width, -(-last // width))
            if first < last
        ]
        while True:
            yield [item for items, own in opened for item in list(islice(items, width))[own]]

    def _epoch(self, lane: int, epoch: int) -> Iterable[Any]:
        return self.open(epoch, lane)


@dataclass(frozen=True)
class SplitStream:
    """Records that split themselves: opened in a process, or in a worker of it, they give the part of that one.

    Such are pipelines with ``nodesplitter=webdataset.split_by_node``, and an ``IterableDataset`` that asks for its rank
    and worker. Which samples a step sees then depends on the number of readers: two processes do not train what one
    trains, and a part with fewer records is seen more often. A run that goes on passes over as many items as it had;
    they are the same where the conditions of :class:`Stream` hold and the number of readers did not change.

    Args:
        open: ``epoch -> items`` of the process and the worker that call it.
        read: makes the record of an item.
    """

    open: Callable[[int], Iterable[Any]]
    read: Callable[[Any], Record] = as_it_is

    def check(self, batch: int, readers: int) -> None:
        """Refuse a batch of which some reader would read less than another.

        Raises:
            ValueError: readers that do not divide the batch.
        """
        if batch % readers:
            raise ValueError(
                f"a batch of {batch} cannot be shared equally by {readers} readers (processes times workers), each of "
                f"which has a part of the stream: take a multiple of {readers}"
            )

    def stretch(self, batch: int, step: int, first: int, last: int) -> Iterator[list[Any]]:
        """The next ``last - first`` items of this reader, for each step from ``step`` on.

        Raises:
            ValueError: a part without items.
        """
        width = last - first
        items = _endless(self.open, step * width, "the part of this process and worker")
        while True:
            yield list(islice(items, width))


def _endless(open: Callable[[int], Iterable[Any]], skip: int, what: str) -> Iterator[Any]:
    """The items of one epoch after the other, without the first ``skip``."""
    epoch = 0
    while True:
        seen = 0
        for seen, item in enumerate(open(epoch), 1):  # noqa: B007
            if skip:
                skip -= 1
            else:
                yield item
        if not seen:
            raise ValueError(
                f"{what} has no records in epoch {epoch}: something that is opened again begins again, so give a "
                "function that makes a new iterator; and there must be a shard for every reader"
            )
        # Epochs are equally long: those that lie ahead as a whole are not opened.
        epoch, skip = epoch + 1 + skip // seen, skip % seen
