"""Latents that are encoded once: a data set whose records hold ``latent`` in place of ``target``.

>>> latents = cache_latents(data, model.stage, "cache/latents", augment=CenterCrop(256))
>>> train(Diffusion(model, "class-conditional"), latents, run)

Of a Gaussian posterior mean and deviation are kept, so that every step draws anew; of any other first stage what it
encodes, which for a codebook is the latent before it is quantised. Both are scaled.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldmkit.composition import FirstStage
from ldmkit.denoiser import precision
from ldmkit.errors import CheckpointError, NonFiniteError
from ldmkit.first_stages.kl import KL
from ldmkit.training.cache_folder import CacheFolder, Packing, Shard, made_by, shard_name, spread
from ldmkit.training.cache_reading import Image, Images, Views, fingerprint, in_order, portions
from ldmkit.training.contract import Augment
from ldmkit.training.data import Data
from ldmkit.training.interruption import Interruption, Stopped, interruptible
from ldmkit.training.parallel import process_group, rank, world

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Latents:
    """Records of a cache: what the data held, with ``latent`` and maybe ``latent_std`` in place of ``target``.

    Args:
        folder: of the cache.
        shards: its files, all but the last of one length.
    """

    folder: Path
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return len(self.shards[0]) * (len(self.shards) - 1) + len(self.shards[-1])

    def __getitem__(self, place: int) -> dict[str, Any]:
        """The record of a place, read from disk.

        Raises:
            IndexError: outside [0, len - 1].
            CheckpointError: its shard is damaged or gone.
        """
        if not 0 <= place < len(self):
            raise IndexError(f"records 0 to {len(self) - 1}, got {place}")
        shard, row = divmod(place, len(self.shards[0]))
        return self.shards[shard].record(row)

    def fingerprint(self) -> str:
        """A hash of what every record was made of."""
        whole = hashlib.sha256()
        for shard in self.shards:
            whole.update(b"".join(shard.contents()))
        return whole.hexdigest()


def cache_latents(
    data: Data,
    first_stage: FirstStage,
    folder: str | os.PathLike[str],
    *,
    augment: Augment | None = None,
    passes: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    batch: int = 16,
    shard: int = 512,
    workers: int = 0,
    verify: bool = False,
    progress: bool = True,
) -> Latents:
    """Encode the ``target`` of every record once, or open the cache where that was done before.

    The same call begins a cache, goes on with one that was interrupted, and opens a finished one. Under a launcher
    every process makes it and encodes its share; none returns before all shards are there.

    Whether an older cache fits is decided by the first stage (name, options, every weight and its scale), the other
    arguments, the number of records, the data's fingerprint where they have one, and 16 records that are read again.

    Args:
        data: records by place.
        first_stage: on the device where it is to encode; a model's is ``model.stage``.
        folder: of the cache; made if it is not there.
        augment: applied to each record before it is encoded, with a seed of its own.
        passes: how often the data are gone through, each time with other seeds: the result is so many times as long.
        seed: of what ``augment`` draws.
        dtype: in which latents are kept: float32, float16 or bfloat16.
        batch: images that are encoded at once.
        shard: records of a file; what an interruption may cost.
        workers: processes that read and augment, for each process that encodes.
        verify: compare every byte of the cache and every record of the data, which takes as long as reading them.
        progress: show a bar.

    Returns:
        Records that hold all that the data's records held, without ``target``.

    Raises:
        TypeError: data without a length and an index, or a record with a value that no cache keeps.
        ValueError: a number out of range, another dtype, or no data.
        BatchError: a record without ``target``.
        CheckpointError: the folder holds a cache of something else, or is damaged; the message names the difference.
        NonFiniteError: the latents of a record are not finite in ``dtype``.
        Stopped: a signal came; the finished shards are kept.
    """
    check_numbers(dtype, passes=passes, batch=batch, shard=shard)
    images = Images(Views(data, augment, passes, seed), first_stage.image_channels)
    stage = cast(nn.Module, first_stage)
    identity = {
        **made_by("first-stage", first_stage),
        "augment": re.sub(r" at 0x[0-9a-f]+", "", repr(augment)),
        "passes": passes,
        "seed": seed,
        "dtype": str(dtype),
        "shard": shard,
        "number of records": len(data),
        "fingerprint of the records": fingerprint(data),
    }
    names = [shard_name(number) for number in range(-(-len(images) // shard))]
    with process_group(), torch.random.fork_rng(devices=()):
        there = CacheFolder(Path(folder), identity)
        _check_records(there, names, shard, images, all_of_them=verify)
        missing = [number for number, name in enumerate(names) if name not in there.shards][rank() :: world()]
        places = {number: range(number * shard, min((number + 1) * shard, len(images))) for number in missing}
        with interruptible() as wish, evaluating(stage):
            encode = Encoding(first_stage, dtype)
            read = in_order(images, places.values(), workers)
            total = sum(map(len, places.values()))
            with tqdm(total=total, desc="encoding", unit="image", disable=silent(progress)) as bar:
                for number, of in places.items():
                    packing = Packing()
                    for part in portions(islice(read, len(of)), batch):
                        stop_if(wish)
                        for one, latent in zip(part, encode(part), strict=True):
                            packing.add({**one.rest, **latent}, one.content)
                        bar.update(len(part))
                    there.write(names[number], packing)
        return Latents(there.path, tuple(there.finish()))


class Encoding:
    """Images to what a cache keeps of their latents.

    Args:
        stage: in evaluation mode.
        dtype: what is kept.
    """

    def __init__(self, stage: FirstStage, dtype: torch.dtype) -> None:
        self.stage = stage
        self.dtype = dtype
        module = cast(nn.Module, stage)
        self.precision = precision(module)
        self.device = device_of(module)
        self.draws: bool | None = None  # the first images tell

    @torch.no_grad()
    def __call__(self, images: Sequence[Image]) -> list[dict[str, Tensor]]:
        """``latent`` and, where the first stage draws, ``latent_std`` of each, (c, h, w) on the CPU.

        Raises:
            NonFiniteError: a number is not finite.
        """
        x = torch.stack([image.target for image in images]).to(self.device) * 2 - 1
        kept = {key: value.float().to("cpu", self.dtype) for key, value in self._moments(x.to(self.precision)).items()}
        for i, image in enumerate(images):
            if not all(bool(value[i].isfinite().all()) for value in kept.values()):
                raise NonFiniteError(
                    f"the latent of record {image.place} is not finite in {self.dtype}: look at the image, or keep "
                    "latents in float32"
                )
        return [{key: value[i] for key, value in kept.items()} for i in range(len(images))]

    def _moments(self, x: Tensor) -> dict[str, Tensor]:
        stage = self.stage
        if isinstance(stage, KL):
            posterior = stage.posterior(x)  # both in one pass of the network
            return {"latent": stage.scale * posterior.mean, "latent_std": stage.scale * posterior.std}
        mode = stage.encode(x)
        if self.draws is False:
            return {"latent": mode}
        # A draw is the mode plus a spread times the noise: what a unit of noise adds is the spread.
        spread = stage.encode(x, torch.ones_like(mode)).float() - mode.float()
        self.draws = self.draws or bool(spread.any())
        return {"latent": mode, "latent_std": spread} if self.draws else {"latent": mode}


def check_numbers(dtype: torch.dtype, **numbers: int) -> None:
    """Refuse what no cache can be made with.

    Raises:
        ValueError: a number below 1, or another type.
    """
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if dtype not in DTYPES:
        raise ValueError(f"a cache keeps numbers as {', '.join(map(str, DTYPES))}, got {dtype}")


def _check_records(there: CacheFolder, names: Sequence[str], shard: int, images: Images, *, all_of_them: bool) -> None:
    """Refuse a cache whose records were made of something else: by some of the records, or by all and every byte."""
    if all_of_them:
        there.verify()
    for place in range(len(images)) if all_of_them else spread(len(images)):
        number, row = divmod(place, shard)
        held = there.shards.get(names[number])
        if held is not None and held.contents()[row] != images[place].content:
            raise CheckpointError(
                f"{there.path} is stale: record {place} was another one, as its image, its other keys or its "
                "augmentation have changed. Delete the folder, or give another one"
            )


def stop_if(wish: Interruption) -> None:
    """Stop where a signal asked for it.

    Raises:
        Stopped: it did.
    """
    if wish.signal is not None:
        raise Stopped(f"stopped by {wish.signal}; the shards that are finished are kept, and the same call goes on")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule is in the mode it was in."""
    modes = {one: one.training for one in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for one, mode in modes.items():
            one.training = mode


def device_of(module: nn.Module) -> torch.device:
    """Where a module is; the CPU for one without tensors."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def silent(progress: bool) -> bool:
    """Whether this process shows no bar."""
    return not progress or rank() > 0
