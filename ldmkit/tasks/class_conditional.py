"""Images of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from ldmkit.tasks.contract import Inputs
from ldmkit.tasks.fitting import classes_of, source_of
from ldmkit.tasks.labels import class_index

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion


@dataclass(frozen=True)
class ClassConditional:
    """``label`` to class indices: an integer, a name, a list of them, or an int64 tensor (B,).

    Args:
        classes: K; None: what the model's conditioner says.
        names: the classes' names; None: those that travel with the model.
    """

    classes: int | None = None
    names: tuple[str, ...] | None = None

    takes = ("label",)
    fills = ("label",)

    def fitted(self, model: LatentDiffusion) -> Self:
        """With the model's classes and their names."""
        classes, names = classes_of(source_of(model, "label"))
        return replace(self, classes=self.classes or classes, names=self.names or names)

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """``label`` as int64 (B,).

        Raises:
            ValueError: no label, none in the list, not one dimension, or no such class.
            TypeError: labels that are neither integers nor names.
        """
        given = inputs.get("label")
        if given is None:
            raise ValueError("task 'class-conditional' needs label=: a class index or name, or a list of them")
        labels = [class_index(one, self.classes, self.names, f"label[{i}]") for i, one in enumerate(_listed(given))]
        return {"label": torch.tensor(labels, dtype=torch.int64)}


def _listed(label: object) -> Sequence[Any]:
    if isinstance(label, Tensor | np.ndarray):
        if label.ndim > 1:
            raise ValueError(f"label must be one class index or a list of them, got shape {tuple(label.shape)}")
        label = label.tolist()
    labels = label if isinstance(label, list | tuple | range) else [label]
    if not labels:
        raise ValueError("label must be one class index or a list of them, got an empty list")
    return labels
