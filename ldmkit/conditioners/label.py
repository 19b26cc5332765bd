"""Class conditioning: one class per image, as an embedding or as an index.

A class k in [0, K - 1] becomes row k of a learned table; the class "none", which dropout and guidance use, is row K:

    c = E[k],    null = E[K],    E of shape (K + 1, D).

:class:`ClassLabel` owns the table. :class:`ClassIndex` is for a backbone that owns one itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ldmkit.conditioners.inputs import class_names, indices
from ldmkit.conditioning import Batch, Conditioning


class ClassLabel(nn.Module):
    """Embeds a class as one token for cross-attention, or as a vector beside the time embedding.

    Args:
        classes: K, the number of real classes.
        width: D, the width of the embedding.
        slot: ``context`` gives (B, 1, D), ``vector`` gives (B, D).
        null_class: the table has a last row, of index K, that stands for "no class". Without it there is no null, so
            neither dropout nor classifier-free guidance.
        names: the classes' names, one each; they travel with the model.

    Reads ``label``: (B,) integers in [0, K - 1].

    Raises:
        ValueError: an unknown slot, sizes below 1, or another number of names than classes; in a call, labels that are
            not (B,) integers in [0, K - 1].

    Source: ``ClassEmbedder`` of the original, where K + 1 is called ``n_classes`` (1001 with the null class in
    the guided ImageNet model, 1000 without it in the first one).
    """

    reads: tuple[str, ...] = ("label",)

    def __init__(
        self,
        classes: int,
        width: int,
        slot: Literal["context", "vector"] = "context",
        null_class: bool = True,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if slot not in ("context", "vector"):
            raise ValueError(
                f"conditioner 'class-label' fills the slot 'context' or 'vector', got {slot!r}; for a backbone with "
                "its own label embedding use 'class-index'"
            )
        if classes < 1 or width < 1:
            raise ValueError(f"conditioner 'class-label' needs at least 1 class and width 1, got {classes} and {width}")
        self.classes = classes
        self.width = width
        self.slot = slot
        self.null_class = null_class
        self.names = class_names(names, classes, "class-label")
        self.provides: Mapping[str, int] = {slot: width}
        self.has_null = null_class
        self.embedding = nn.Embedding(classes + null_class, width)

    def forward(self, batch: Batch) -> Conditioning:
        """Embed ``batch["label"]``."""
        return self._embedded(indices(batch, "label", ("B",), self.classes, "class-label"))

    def null(self, batch: Batch) -> Conditioning:
        """The embedding of "no class", once per image.

        Raises:
            ValueError: the conditioner was built without a null class.
        """
        label = indices(batch, "label", ("B",), self.classes, "class-label")
        return self._embedded(_null_label(label, self.classes, self.null_class, "class-label"))

    def _embedded(self, label: Tensor) -> Conditioning:
        embedded = self.embedding(label)
        return Conditioning(vector=embedded) if self.slot == "vector" else Conditioning(context=embedded[:, None])


class ClassIndex(nn.Module):
    """Passes a class index to a backbone that has its own label embedding; it has no parameters.

    Args:
        classes: K, the number of real classes.
        null_class: the backbone's table has a last row, of index K, that stands for "no class".
        names: the classes' names, one each; they travel with the model.

    Reads ``label``: (B,) integers in [0, K - 1]. Provides ``label`` with K + 1 indices, or K without the null class.

    Raises:
        ValueError: fewer than 1 class or another number of names than classes; in a call, labels that are not (B,)
            integers in [0, K - 1].

    Source: the ``adm`` conditioning of the original, ``y`` of its UNet.
    """

    reads: tuple[str, ...] = ("label",)

    def __init__(self, classes: int, null_class: bool = True, names: Sequence[str] | None = None) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"conditioner 'class-index' needs at least 1 class, got {classes}")
        self.classes = classes
        self.null_class = null_class
        self.names = class_names(names, classes, "class-index")
        self.provides: Mapping[str, int] = {"label": classes + null_class}
        self.has_null = null_class

    def forward(self, batch: Batch) -> Conditioning:
        """Pass ``batch["label"]`` on as int64."""
        return Conditioning(label=indices(batch, "label", ("B",), self.classes, "class-index"))

    def null(self, batch: Batch) -> Conditioning:
        """Index K, "no class", once per image.

        Raises:
            ValueError: the conditioner was built without a null class.
        """
        label = indices(batch, "label", ("B",), self.classes, "class-index")
        return Conditioning(label=_null_label(label, self.classes, self.null_class, "class-index"))


def _null_label(label: Tensor, classes: int, null_class: bool, owner: str) -> Tensor:
    if not null_class:
        raise ValueError(
            f"conditioner '{owner}' was built with null_class=False and has no null: build it with null_class=True and "
            "train with dropout, or sample without guidance"
        )
    return torch.full_like(label, classes)
