"""Encodings of frozen conditioners that are made once, and read while a model trains.

>>> encodings = cache_encodings(latents, model, "text-to-image", "cache/text", sources=["text"])
>>> train(Diffusion(model, "text-to-image", encodings=encodings), latents, run)

The model keeps its own conditioners, for its samples and for its file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldmkit.conditioning import LATENT, Conditioner, Conditioning
from ldmkit.errors import CompositionError, NonFiniteError
from ldmkit.model import LatentDiffusion
from ldmkit.pipelines import pipeline
from ldmkit.tasks.contract import Noising, Task
from ldmkit.training.cache import check_numbers, device_of, evaluating, silent, stop_if
from ldmkit.training.cache_folder import CacheFolder, Packing, made_by, spread
from ldmkit.training.cache_reading import Views, fingerprint
from ldmkit.training.contract import Record
from ldmkit.training.data import Data
from ldmkit.training.diffusion import told
from ldmkit.training.interruption import Interruption, interruptible
from ldmkit.training.parallel import gathered, process_group, rank, world
from ldmkit.training.phase import moved
from ldmkit.training.plain import content
from ldmkit.training.remembered import Remembered, has_null, samples


def cache_encodings(
    data: Data,
    model: LatentDiffusion,
    task: str | Task,
    folder: str | os.PathLike[str],
    sources: Sequence[str],
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 64,
    shard: int = 512,
    verify: bool = False,
    progress: bool = True,
) -> dict[str, Remembered]:
    """Encode what the records say to some frozen sources of a model, each different thing once.

    The same call begins the caches, goes on with them where it was interrupted, adds what further data say, and opens
    finished ones. Under a launcher every process makes it and encodes its share. A cache of another conditioner (name,
    options or a weight) is refused. The data are read through, unless their number, their fingerprint where they have
    one, and 16 of their records say that they are those of the last time: give it latents of a cache, which read fast.

    Args:
        data: records as they are trained on.
        model: its conditioners are on the device where they are to encode.
        task: a registered name, or a task.
        folder: of the caches, one in it per source; made if it is not there.
        sources: names of the model's sources.
        dtype: in which encodings are kept: float32, float16 or bfloat16.
        batch: samples that are encoded at once.
        shard: encodings of a file; what an interruption may cost.
        verify: compare every byte of the caches, and read all data through.
        progress: show a bar.

    Returns:
        Source -> what stands in for it, for ``Diffusion(model, task, encodings=...)``.

    Raises:
        TypeError, ValueError: data without a length and an index, no data, a number out of range, another dtype.
        CompositionError: a source that the model does not have, that is trained, or that reads what every step makes
            anew.
        CheckpointError: a folder holds a cache of another conditioner, or is damaged.
        NonFiniteError: an encoding is not finite in ``dtype``.
        Stopped: a signal came; the finished shards are kept.
    """
    check_numbers(dtype, batch=batch, shard=shard)
    fitted, views = pipeline(task, model).task, Views(data, None, 1, 0)
    chosen = {name: checked(name, model, fitted) for name in sources}
    with process_group(), torch.random.fork_rng(devices=()), interruptible() as wish:
        there = {
            name: CacheFolder(Path(folder) / name, {**made_by("conditioner", source), "dtype": str(dtype)})
            for name, source in chosen.items()
        }
        for one in there.values() if verify else ():
            one.verify()
        said = Said(views, fitted, chosen, wish, progress)
        facts = [len(data), fingerprint(data)]
        known = {name: one.contents() for name, one in there.items()}
        unread = verify or any(one.notes != facts for one in there.values()) or not said.are_among(known)
        missing = said.beyond(known) if unread else {name: [] for name in chosen}
        found = {}
        for name, source in chosen.items():
            Encoding(name, source, said, dtype, batch).write(there[name], missing[name], shard)
            found[name] = Remembered(name, source, there[name].path, there[name].finish(facts))
        return found


def checked(name: str, model: LatentDiffusion, task: Task) -> Conditioner:
    """A source whose encodings can be kept.

    Raises:
        CompositionError: there is none of that name, it is trained, or it reads what is made anew in every step.
    """
    sources: Mapping[str, Conditioner] = {} if model.conditioner is None else model.conditioner.conditioners()
    if name not in sources:
        raise CompositionError(f"the model has no source '{name}' to encode; its sources are {list(sources)}")
    source = sources[name]
    trained = [key for key, p in cast(nn.Module, source).named_parameters() if p.requires_grad]
    if trained:
        raise CompositionError(
            f"source '{name}' ({type(source).__name__}) is trained, {len(trained)} parameters such as '{trained[0]}': "
            "its encodings would be of the past after one step. Leave it out, or freeze it with requires_grad_(False)"
        )
    anew = [key for key in source.reads if key.endswith(LATENT) or (isinstance(task, Noising) and key in task.draws)]
    if anew or not source.reads:
        what = f"reads {anew}, which every step makes anew" if anew else "reads nothing of a record"
        raise CompositionError(f"source '{name}' {what}, so that there is nothing to keep of it: leave it out")
    return source


@dataclass(frozen=True)
class Said:
    """What records say to some sources.

    Args:
        data: the records.
        task: makes a batch of them.
        sources: by name.
        wish: a signal to stop.
        progress: show a bar.
    """

    data: Views
    task: Task
    sources: Mapping[str, Conditioner]
    wish: Interruption
    progress: bool

    def contents(self, place: int) -> dict[str, bytes]:
        """Source -> the content of what it reads of a record."""
        batch = told([self.data[place]], self.task)
        return {
            name: content(next(samples(source, batch)), f"what source '{name}' reads of record {place}")
            for name, source in self.sources.items()
        }

    def are_among(self, known: Mapping[str, set[bytes]]) -> bool:
        """Whether some of the records, from the first to the last, say nothing else."""
        some = [self.contents(place) for place in spread(len(self.data))]
        return all(key in known[name] for contents in some for name, key in contents.items())

    def beyond(self, known: Mapping[str, set[bytes]]) -> dict[str, list[tuple[int, bytes]]]:
        """Source -> (place, content) of what occurs there first and is not known; the same in every process."""
        own: dict[str, dict[bytes, int]] = {name: {} for name in self.sources}
        for place in tqdm(range(rank(), len(self.data), world()), "reading", disable=silent(self.progress)):
            stop_if(self.wish)
            for name, key in self.contents(place).items():
                own[name].setdefault(key, place)
        first: dict[str, dict[bytes, int]] = {name: {} for name in self.sources}
        for theirs in gathered(own):
            for name, places in theirs.items():
                for key, place in places.items():
                    first[name][key] = min(place, first[name].get(key, place))
        return {
            name: sorted((place, key) for key, place in places.items() if key not in known[name])
            for name, places in first.items()
        }


@dataclass(frozen=True)
class Encoding:
    """A source at work for the cache.

    Args:
        name: of the source.
        source: its conditioner.
        said: what the records say.
        dtype: what is kept.
        batch: samples at once.
    """

    name: str
    source: Conditioner
    said: Said
    dtype: torch.dtype
    batch: int

    def write(self, there: CacheFolder, missing: Sequence[tuple[int, bytes]], shard: int) -> None:
        """Add shards of what is missing; this process its share of them."""
        chunks = [missing[at : at + shard] for at in range(0, len(missing), shard)]
        named = list(zip(there.free(len(chunks)), chunks, strict=True))[rank() :: world()]
        with evaluating(cast(nn.Module, self.source)):
            for file, chunk in tqdm(named, desc=f"encoding '{self.name}'", disable=silent(self.said.progress)):
                packing = Packing()
                for at in range(0, len(chunk), self.batch):
                    stop_if(self.said.wish)
                    part = chunk[at : at + self.batch]
                    for (_, key), record in zip(part, self._encoded([place for place, _ in part]), strict=True):
                        packing.add(record, key)
                there.write(file, packing)

    @torch.no_grad()
    def _encoded(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """``cond`` and, where there is one, ``null`` of the records of these places: slot -> its row."""
        records: list[Record] = [self.said.data[place] for place in places]
        batch = moved(told(records, self.said.task), device_of(cast(nn.Module, self.source)))
        kept = {"cond": self._kept(self.source(batch), places)}
        if has_null(self.source):
            kept["null"] = self._kept(self.source.null(batch), places)
        return [
            {which: {slot: value[i] for slot, value in slots.items()} for which, slots in kept.items()}
            for i in range(len(places))
        ]

    def _kept(self, cond: Conditioning, places: Sequence[int]) -> dict[str, Tensor]:
        slots = cond.map(lambda value: value.to(self.dtype) if value.is_floating_point() else value).filled()
        for slot, value in slots.items():
            if not bool(value.isfinite().all()):
                raise NonFiniteError(
                    f"source '{self.name}' gives a {slot} that is not finite in {self.dtype}, for one of the records "
                    f"{places}: look at them, or keep encodings in float32"
                )
        return {slot: value.cpu() for slot, value in slots.items()}
