"""A conditioner that looks up what another one said.

An encoding is found by the content of what its conditioner reads, so that equal prompts share one, and a prompt that
was never encoded is refused and not confused with another. Its null is kept beside it: dropout is as with the
conditioner itself. :func:`ldmkit.training.encodings.cache_encodings` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldmkit.conditioning import AlsoReads, Batch, Conditioner, Conditioning, MayLackNull
from ldmkit.conditioning import batch as stacked
from ldmkit.denoiser import precision
from ldmkit.errors import BatchError
from ldmkit.training.cache_folder import Shard
from ldmkit.training.plain import content


class Remembered(nn.Module):
    """Stands in for a frozen conditioner while a model trains, and reads from disk what that one gave.

    Args:
        name: of the source.
        source: the conditioner; it is not kept.
        folder: where the encodings are.
        shards: the files.

    Reads what the conditioner reads.

    Raises:
        BatchError: in a call, something that was never encoded.
        CheckpointError: in a call, a file that is damaged or gone.
    """

    def __init__(self, name: str, source: Conditioner, folder: Path, shards: Sequence[Shard]) -> None:
        super().__init__()
        self.name = name
        self.folder = folder
        self.reads = source.reads
        self.also_reads = source.also_reads if isinstance(source, AlsoReads) else ()
        self.provides = source.provides
        self.has_null = has_null(source)
        self.places = {key: (shard, row) for shard in shards for row, key in enumerate(shard.contents())}
        # Moves with the model, and says where it is and in which precision.
        self.register_buffer("like", torch.empty(0, dtype=precision(source)), persistent=False)

    def forward(self, batch: Batch) -> Conditioning:
        """What the conditioner gave for each sample."""
        return self._found(batch, "cond")

    def null(self, batch: Batch) -> Conditioning:
        """What its null was for each sample.

        Raises:
            ValueError: it has none.
        """
        if not self.has_null:
            raise ValueError(f"source '{self.name}' has no null: its conditioner was built without one")
        return self._found(batch, "null")

    def _found(self, batch: Batch, which: str) -> Conditioning:
        records = []
        for sample in samples(self, batch):
            if (key := content(sample, f"what source '{self.name}' reads")) not in self.places:
                raise BatchError(
                    f"source '{self.name}' was never told {sample!r:.200}: {self.folder} has {len(self.places)} other "
                    "encodings. Call cache_encodings with all data, and train on them without changing what it reads"
                )
            shard, row = self.places[key]
            slots = shard.record(row, which)[which]
            records.append(Conditioning(**{name: value[None] for name, value in slots.items()}))
        return stacked(records).map(self._placed)

    def _placed(self, value: Tensor) -> Tensor:
        like = self.get_buffer("like")
        return value.to(like) if value.is_floating_point() else value.to(like.device)


def has_null(source: Conditioner) -> bool:
    """Whether a conditioner can say nothing."""
    return not isinstance(source, MayLackNull) or source.has_null


def samples(source: Conditioner, batch: Batch) -> Iterator[dict[str, Any]]:
    """What a conditioner reads of each sample of a batch."""
    also = source.also_reads if isinstance(source, AlsoReads) else ()
    keys = [*source.reads, *(key for key in also if key in batch)]
    for values in zip(*(batch[key] for key in keys), strict=True):
        yield dict(zip(keys, values, strict=True))
