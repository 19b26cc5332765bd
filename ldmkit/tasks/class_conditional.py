"""Images of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldmkit.tasks.contract import Inputs


@dataclass(frozen=True)
class ClassConditional:
    """``label`` to class indices: an integer, a list of integers, or an int64 tensor (B,)."""

    takes = ("label",)
    fills = ("label",)

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """``label`` as int64 (B,).

        Raises:
            ValueError: no label, none in the list, or not one dimension.
            TypeError: labels that are not integers.
        """
        if inputs.get("label") is None:
            raise ValueError("task 'class-conditional' needs label=: a class index or a list of them")
        return {"label": _indices(inputs["label"])}


def _indices(label: int | Sequence[int] | Tensor) -> Tensor:
    try:
        indices = torch.as_tensor([label] if isinstance(label, int) else label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"label must be a class index or a list of them, got {label!r:.60}") from error
    if indices.numel() == 0 or indices.ndim != 1:
        raise ValueError(f"label must be one class index or a list of them, got shape {tuple(indices.shape)}")
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise TypeError(f"label must hold integers, got {indices.dtype}")
    return indices.long()
