"""What a conditioner may be given: a batch's tensors, checked before anything is computed with them.

A shape is written as a tuple in which a letter stands for any size and a number for that size: ``("B", 77)``,
``("B", 3, "H", "W")``. Nothing here converts units or moves tensors between devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldmkit.conditioning import Batch

Shape = tuple[str | int, ...]
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def indices(batch: Batch, key: str, shape: Shape, count: int, owner: str) -> Tensor:
    """Read integers in [0, count - 1] as int64.

    Args:
        batch: the batch.
        key: which of its values.
        shape: what the value must look like.
        count: how many indices there are.
        owner: the conditioner's registered name, for the message.

    Raises:
        TypeError: the value is not a tensor.
        ValueError: another shape, not integers, or an index out of range.
    """
    value = _tensor(batch, key, shape, owner)
    if value.dtype not in INTEGERS:
        raise ValueError(f"conditioner '{owner}' reads batch['{key}'] as integers, got {value.dtype}")
    if value.numel():
        # One wait for the device instead of two; an index out of range would kill the CUDA context later.
        low, high = torch.stack(value.aminmax()).tolist()
        if low < 0 or high >= count:
            raise ValueError(
                f"conditioner '{owner}' reads batch['{key}'] in [0, {count - 1}], got values in [{low}, {high}]"
            )
    return value.long()


def real(batch: Batch, key: str, shape: Shape, owner: str) -> Tensor:
    """Read a floating-point tensor.

    Raises:
        TypeError: the value is not a tensor.
        ValueError: another shape, or not floating point.
    """
    value = _tensor(batch, key, shape, owner)
    if not value.is_floating_point():
        raise ValueError(f"conditioner '{owner}' reads batch['{key}'] as floating point, got {value.dtype}")
    return value


def class_names(names: Sequence[str] | None, classes: int, owner: str) -> tuple[str, ...] | None:
    """The names of the classes as a tuple, one each, or None.

    Raises:
        ValueError: there are more or fewer names than classes.
    """
    if names is None:
        return None
    if len(names) != classes:
        raise ValueError(f"conditioner '{owner}' has {classes} classes and was given {len(names)} names: give one each")
    return tuple(names)


def _tensor(batch: Batch, key: str, shape: Shape, owner: str) -> Tensor:
    value = batch[key]
    if not isinstance(value, Tensor):
        raise TypeError(f"conditioner '{owner}' reads batch['{key}'] as a tensor, got {type(value).__name__}")
    fits = value.ndim == len(shape) and all(
        isinstance(want, str) or want == size for want, size in zip(shape, value.shape, strict=True)
    )
    if not fits:
        wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"conditioner '{owner}' reads batch['{key}'] of shape {wanted}, got {tuple(value.shape)}")
    return value
