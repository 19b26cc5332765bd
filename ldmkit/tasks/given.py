"""Reading of numbers that no picture holds: depth maps, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def numbers(given: Any, name: str, ranks: Sequence[int]) -> Tensor:  # noqa: ANN401 - whatever the user has
    """An array, a tensor or nested lists as finite float32, one dimension longer than the shortest rank at least.

    Args:
        given: of one of the ranks; the lowest is that of a single item, which becomes a batch of one.
        name: the keyword, for messages.
        ranks: the ranks that are understood, the lowest first.

    Raises:
        TypeError: something that holds no real numbers.
        ValueError: another rank, no items, or a value that is not finite.
    """
    try:
        values = torch.as_tensor(np.asarray(given) if not isinstance(given, Tensor) else given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers in an array or a tensor, got {given!r:.60}") from error
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be real numbers, got {values.dtype}")
    values = values.detach().to(torch.float32)
    if values.ndim not in ranks or values.numel() == 0:
        raise ValueError(f"{name} must have {' or '.join(map(str, ranks))} dimensions, got shape {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite")
    return values[None] if values.ndim == ranks[0] else values
