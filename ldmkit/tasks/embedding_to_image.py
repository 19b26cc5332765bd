"""Images of an embedding that was computed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from ldmkit.errors import CompositionError
from ldmkit.noise import Noise
from ldmkit.tasks.condition import aligned, condition_for, framed, with_fills, with_takes
from ldmkit.tasks.contract import Frame, Inputs, Task
from ldmkit.tasks.fitting import source_of
from ldmkit.tasks.given import numbers

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion


@runtime_checkable
class Passing(Protocol):
    """A conditioner that passes one tensor of the batch to one slot of the backbone."""

    key: str
    slot: str
    size: int


@dataclass(frozen=True)
class EmbeddingToImage:
    """``embedding``, for a model whose conditioner passes precomputed tokens or a vector on.

    Args:
        key: the batch key that the conditioner reads; None: what the model's says.
        tokens: whether it is a sequence of tokens, (L, D) for one image, or a vector (E,); one token may come as (D,).
        condition: what the model reads beside it.
    """

    key: str | None = None
    tokens: bool = True
    condition: Task | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """``embedding``, and the keywords of the condition."""
        return with_takes(("embedding",), self.condition)

    @property
    def fills(self) -> tuple[str, ...]:
        """The conditioner's key, and those of the condition."""
        return with_fills((self.key or "embedding",), self.condition)

    def fitted(self, model: LatentDiffusion) -> Self:
        """With the key and the slot of the model's conditioner.

        Raises:
            CompositionError: no conditioner of the model passes tokens or a vector on.
        """
        sources = () if model.conditioner is None else tuple(model.conditioner.conditioners().values())
        passing = [source for source in sources if isinstance(source, Passing) and source.slot in ("context", "vector")]
        chosen = [source for source in passing if self.key in (None, source.key)]
        if len(chosen) != 1:
            reads = [] if model.conditioner is None else list(model.conditioner.reads)
            raise CompositionError(
                f"task 'embedding-to-image' needs a model with one conditioner 'precomputed' of context or vector, and "
                f"finds {len(chosen)}; its conditioners read {reads}"
            )
        key = chosen[0].key
        condition = condition_for(self.condition, model, (key,))
        return replace(self, key=key, tokens=chosen[0].slot == "context", condition=condition)

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """What the condition asks for."""
        return framed(self.condition, inputs, model)

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """The embedding as (B, L, D) or (B, E), and what the condition fills.

        Raises:
            ValueError: none, another shape, or values that are not finite.
            TypeError: no numbers.
        """
        if inputs.get("embedding") is None:
            raise ValueError("task 'embedding-to-image' needs embedding=: an array or a tensor")
        given = numbers(inputs["embedding"], "embedding", (1, 2, 3) if self.tokens else (1, 2))
        given = given[None] if self.tokens and given.ndim == 2 else given
        own = {self.key or "embedding": given}
        return aligned({**own, **(self.condition.prepare(inputs) if self.condition else {})})


@dataclass(frozen=True)
class ImageVariation:
    """``image_embedding`` of a picture, noised to ``noise_level``, for a model trained on noised embeddings.

    Args:
        condition: what the model reads beside it; None: what fills the rest of its keys.
    """

    condition: Task | None = None

    draws = ("image_embedding_noise",)

    @property
    def takes(self) -> tuple[str, ...]:
        """``image_embedding``, ``noise_level``, and the keywords of the condition."""
        return with_takes(("image_embedding", "noise_level"), self.condition)

    @property
    def fills(self) -> tuple[str, ...]:
        """The embedding, its level, and the keys of the condition."""
        return with_fills(("image_embedding", "image_embedding_level"), self.condition)

    def fitted(self, model: LatentDiffusion) -> Self:
        """With the condition that the model needs.

        Raises:
            CompositionError: no conditioner reads image embeddings.
        """
        if source_of(model, "image_embedding") is None:
            raise CompositionError("task 'image-variation' needs a model with conditioner 'noised-embedding'")
        return replace(self, condition=condition_for(self.condition, model, self.fills))

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """What the condition asks for."""
        return framed(self.condition, inputs, model)

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """The embedding as (B, E), its level as int64 (B,), and what the condition fills.

        Raises:
            ValueError: none, another shape, values that are not finite, or a negative level.
            TypeError: no numbers, or a level that is no integer.
        """
        if inputs.get("image_embedding") is None:
            raise ValueError("task 'image-variation' needs image_embedding=: (E,) for one image or (B, E)")
        own = {
            "image_embedding": numbers(inputs["image_embedding"], "image_embedding", (1, 2)),
            "image_embedding_level": _level(inputs.get("noise_level") or 0),
        }
        return aligned({**own, **(self.condition.prepare(inputs) if self.condition else {})})

    def noised(self, batch: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
        """With ``image_embedding_noise`` from each image's seed."""
        drawn = noise.on("image embedding").constant(batch["image_embedding"])
        return {**batch, "image_embedding_noise": drawn}


def _level(given: object) -> Tensor:
    try:
        level = index(given)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"noise_level must be an integer, got {given!r:.60}") from error
    if level < 0:
        raise ValueError(f"noise_level must be at least 0, got {level}")
    return torch.tensor([level])
