"""Shards and streams, read by every process that a launcher starts; the tests compare what each of them saw.

Run as a script, it leaves the labels of every step in ``rank-0.json`` and ``rank-1.json``, and a trained network.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import webdataset
from distributed.small import Small, Vectors, run

from ldmkit.data.rows import Reading, Records
from ldmkit.data.shards import Shards
from ldmkit.data.streams import SplitStream, Stream
from ldmkit.data.web import web_shards
from ldmkit.training.data import Feed
from ldmkit.training.loop import train
from ldmkit.training.parallel import process_group, rank, world

BATCH, STEPS, WORKERS = 8, 9, 2
EVEN, UNEVEN = (3,) * 8, (1, 5, 2, 3, 7, 1, 4, 2)
COLUMNS = {"target": "png", "label": "cls", "prompt": "txt"}


def write(folder, sizes):
    """Shards of so many samples each, labelled 0, 1, ...; where they are."""
    folder.mkdir(parents=True)
    number = 0
    for shard, size in enumerate(sizes):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for _ in range(size):
                pixels = np.full((4, 4, 3), number / 255, dtype=np.float32)
                tar.write({"__key__": f"{number:04d}", "png": pixels, "cls": number, "txt": f"no. {number}"})
                number += 1
    return sorted(str(path) for path in folder.glob("*.tar"))


def indexed(shards):
    """Shards by place."""
    return Records(Shards(shards), columns=COLUMNS)


def streamed(shards):
    """Shards as a stream, a lane for each of four readers."""
    return web_shards(shards, Reading(COLUMNS), lanes=4, buffer=3, seed=5)


class Pipelines:
    """A pipeline of the package webdataset that splits the shards itself."""

    def __init__(self, shards):
        self.shards = shards

    def __call__(self, epoch):
        return webdataset.WebDataset(self.shards, nodesplitter=webdataset.split_by_node, shardshuffle=False)


def split(shards):
    """The same shards, split by the package."""
    return SplitStream(Pipelines(shards), lambda sample: {"label": int(sample["cls"])})


KINDS = {"indexed": indexed, "streamed": streamed, "split": split}


def labels(data, rank=0, world=1, workers=0, steps=STEPS, start=0):
    """What a process sees: a list for each step."""
    feed = Feed(data, None, seed=3, batch=BATCH, rank=rank, world=world, workers=workers)
    return [[record["label"] for portion in step for record in portion.records] for step in feed.steps(start, steps)]


def vectors(epoch, lane):
    """Ten records, in an order of the epoch."""
    data = Vectors()
    return (data[(i + epoch) % 10] for i in range(10))


def main(out):
    with process_group():
        seen = {
            f"{kind} {part}": labels(make(sorted(map(str, (out / part).glob("*.tar")))), rank(), world(), WORKERS)
            for kind, make in KINDS.items()
            for part in ("even", "uneven")
        }
        (out / f"rank-{rank()}.json").write_text(json.dumps(seen))
        train(Small(), Stream(vectors), run(out / "trained"))


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(Path(sys.argv[1]))
