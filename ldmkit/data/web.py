"""Shards as a stream, read with the package ``webdataset``: from a disk, a web server or a pipe, compressed or not.

    0001.jpg, 0001.txt, 0002.jpg, 0002.txt  ->  {"target": (C, H, W), "prompt": text}, ...

Shards that lie on a disk are better read by :class:`ldmkit.data.Shards`, which has an order of its own in every epoch
and needs no package. Here the order is that of the shards, mixed within a buffer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import ModuleType
from typing import Any

from ldmkit.data.draws import Draws
from ldmkit.data.rows import Reading, Record, options
from ldmkit.data.shards import READERS, decoded, readable
from ldmkit.data.streams import Stream

Sample = Mapping[str, Any]


def web_shards(
    shards: str | Sequence[str | os.PathLike[str]], reading: Reading, lanes: int = 1, buffer: int = 0, seed: int = 0
) -> Stream:
    """Records out of tar files in WebDataset's form, wherever they are.

    Lane l of L holds every L-th shard, from the l-th on. In every epoch the shards of a lane come in another order, and
    its samples through a buffer of which one is drawn at a time; both are functions of (seed, epoch, lane), so the
    stream keeps what :class:`ldmkit.data.Stream` promises. Lanes that differ in samples are read equally fast, and
    the shorter ones again earlier: make shards of one size, as many for each lane.

    Only pictures, ``txt``, ``cls`` and ``json`` are decoded, and only those that the columns name. No member can
    run code; a shard's address can, where it begins with ``pipe:``.

    Args:
        shards: paths and addresses as ``webdataset`` takes them, ``"train-{0000..0099}.tar"`` for many.
        reading: its ``columns`` say which member is what: ``Reading({"target": "jpg;png", "prompt": "json:caption"})``.
        lanes: L, a divisor of the batch and at most the number of shards; best a multiple of processes times workers.
        buffer: samples of a lane that are held at a time to be mixed; 0: they come in order.
        seed: of the order.

    Raises:
        ImportError: the package is not there.
        ValueError: no columns, a member that is not decoded, fewer shards than lanes. When it is read: a shard that
            cannot be opened or is damaged, a sample without a column, a damaged member; with shard and member.
    """
    webdataset = _webdataset()
    urls = webdataset.shardlists.expand_urls(shards) if isinstance(shards, str) else [os.fspath(one) for one in shards]
    if not 1 <= lanes <= len(urls):
        raise ValueError(f"{len(urls)} shards cannot be dealt to {lanes} lanes: every lane needs a shard")
    if not reading.columns:
        raise ValueError("columns= of the reading must say which member of a sample is what: {'target': 'jpg', ...}")
    for word, column in reading.columns.items():
        _check_members(word, column)
    samples = Samples(tuple(urls), reading, lanes, buffer, seed)
    return Stream(samples.open, lanes, samples.read)


@dataclass(frozen=True)
class Samples:
    """What a stream of shards opens and reads; see :func:`web_shards`."""

    urls: tuple[str, ...]
    reading: Reading
    lanes: int
    buffer: int
    seed: int

    def open(self, epoch: int, lane: int) -> Iterator[Sample]:
        """The samples of a lane, their members in bytes."""
        random = Random(Draws(self.seed, f"epoch {epoch} of lane {lane}").below(2**63))
        own = list(self.urls[lane :: self.lanes])
        random.shuffle(own)
        samples = (sample for url in own for sample in _listed(url))
        if not self.buffer:
            return samples
        mixed: Iterator[Sample] = _webdataset().shuffle(self.buffer, initial=self.buffer, rng=random)(samples)
        return mixed

    def read(self, sample: Sample) -> Record:
        """The record of a sample.

        Raises:
            ValueError: a member is damaged, or one is missing.
        """
        url, key = sample["__url__"], sample["__key__"]
        wanted = {name for column in (self.reading.columns or {}).values() for name, _ in options(column)}
        row = {
            suffix: decoded(suffix, value, f"'{url}', member '{key}.{suffix}'") if suffix in wanted else value
            for suffix, value in sample.items()
            if not suffix.startswith("__")
        }
        return self.reading(row, f"'{url}', sample '{key}'")


def _listed(url: str) -> Iterator[Sample]:
    """The samples of one shard, in order."""
    webdataset, sample = _webdataset(), None
    try:
        with webdataset.gopen(url) as stream:
            files = webdataset.tariterators.tar_file_expander([{"url": url, "stream": stream}])
            for sample in webdataset.tariterators.group_by_keys(files):
                yield sample
    except Exception as error:
        # webdataset hangs its stream and address on the arguments of whatever is raised.
        what = error if isinstance(error, OSError) else next(iter(error.args), "")
        raise ValueError(f"shard '{url}' cannot be read as a tar file: {type(error).__name__}: {what}") from error
    if sample is None:
        raise ValueError(f"shard '{url}' has no samples")


def _check_members(word: str, column: str) -> None:
    for name, _ in options(column):
        if not readable(name):
            raise ValueError(
                f"member '{name}' for '{word}' is not decoded: shards give pictures, {', '.join(READERS)}, and nothing "
                "that could run code, as a pickle can; write it anew as one of these"
            )


def _webdataset() -> ModuleType:
    try:
        import webdataset
    except ImportError as error:
        raise ImportError("streams of shards need the package webdataset: pip install ldmkit[webdataset]") from error
    module: ModuleType = webdataset
    return module
