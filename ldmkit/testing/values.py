"""What components take and give, as data: flattened, copied, sliced and compared.

Inputs are mappings from a name to a tensor, a list with an entry per sample, or anything else. Outputs are flattened
to *leaves*: a path such as ``null.context`` to a tensor or a plain value.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmkit.testing.check import require

Inputs = Mapping[str, Any]
Leaves = dict[str, Any]


def leaves(value: object, path: str = "") -> Leaves:
    """Path -> tensor or plain value, of nested mappings, sequences and data classes; None is left out."""
    if value is None:
        return {}
    match value:
        case Mapping():
            items: Iterable[tuple[object, object]] = value.items()
        case list() | tuple():
            items = enumerate(value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            items = ((field.name, getattr(value, field.name)) for field in fields(value))
        case _:
            return {path: value}
    found: Leaves = {}
    for key, item in items:
        found |= leaves(item, f"{path}.{key}" if path else str(key))
    return found


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401 - the same structure again
    """A copy with every tensor in it replaced; everything else is a deep copy."""
    match value:
        case Tensor():
            return function(value)
        case Mapping():
            return {key: mapped(item, function) for key, item in value.items()}
        case list():
            return [mapped(item, function) for item in value]
        case tuple() if type(value) is tuple:
            return tuple(mapped(item, function) for item in value)
        case _ if _holds_tensors(value):
            return replace(value, **{f.name: mapped(getattr(value, f.name), function) for f in fields(value)})
        case _:
            return copy.deepcopy(value)


def _holds_tensors(value: object) -> bool:
    """Whether it is a data class, such as a Conditioning, with tensors in it."""
    return is_dataclass(value) and any(isinstance(leaf, Tensor) for leaf in leaves(value).values())


def cloned(value: Any) -> Any:  # noqa: ANN401
    """A copy that shares nothing, with the memory layout of each tensor."""
    return mapped(value, lambda x: x.detach().clone(memory_format=torch.preserve_format))


def cast(value: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """A copy with every floating-point tensor in another precision."""
    return mapped(value, lambda x: x.detach().clone().to(dtype) if x.is_floating_point() else x.clone())


def samples(value: Any, chosen: Sequence[int], count: int) -> Any:  # noqa: ANN401
    """The chosen samples of ``count``: of every tensor and list with an entry per sample; the rest as it is."""
    match value:
        case Tensor() if value.ndim and value.shape[0] == count:
            return value[list(chosen)].clone()
        case list() | tuple() if type(value) in (list, tuple) and len(value) == count:
            return type(value)(value[i] for i in chosen)
        case Mapping():
            return {key: samples(item, chosen, count) for key, item in value.items()}
        case _ if _holds_tensors(value):
            return replace(value, **{f.name: samples(getattr(value, f.name), chosen, count) for f in fields(value)})
        case _:
            return cloned(value)


def require_equal(got: object, want: object, what: str) -> None:
    """Refuse outputs that differ in any bit."""
    for name, other, value in _pairs(got, want, what):
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            require(value.shape == other.shape, f"{name}: {what} changes its shape, {_shapes(value, other)}")
            same = value.dtype == other.dtype and fingerprint(value) == fingerprint(other)
            require(same, f"{name}: {what} changes it, by up to {distance(other, value):.3g}")
        else:
            require(fingerprint(value) == fingerprint(other), f"{name}: {what} changes it from {value!r} to {other!r}")


def require_close(got: object, want: object, tolerance: float, what: str) -> None:
    """Refuse outputs that differ by more than a share of their largest value; what is no tensor must be equal."""
    for name, other, value in _pairs(got, want, what):
        if not isinstance(value, Tensor) or not isinstance(other, Tensor):
            require(fingerprint(value) == fingerprint(other), f"{name}: {what} changes it from {value!r} to {other!r}")
            continue
        require(value.shape == other.shape, f"{name}: {what} changes its shape, {_shapes(value, other)}")
        off = distance(other, value)
        require(off <= tolerance, f"{name}: {what} changes it by {off:.3g} of its largest value, more than {tolerance}")


def distance(a: Tensor, b: Tensor) -> float:
    """``max |a - b| / max |b|``; inf where b is 0 and a is not, or where they differ in what is not finite."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    if not a.numel() or torch.equal(a, b):
        return 0.0
    off, largest = float((a - b).abs().max()), float(b.abs().max())
    ratio = off / largest if largest else float("inf")
    return ratio if ratio == ratio else float("inf")


def _pairs(got: object, want: object, what: str) -> Iterator[tuple[str, Any, Any]]:
    """(path, leaf of ``got``, leaf of ``want``), after making sure that they have the same paths."""
    ours, theirs = leaves(got), leaves(want)
    require(ours.keys() == theirs.keys(), f"{what} gives {sorted(ours)} instead of {sorted(theirs)}")
    return ((name, ours[name], value) for name, value in theirs.items())


def _shapes(want: Tensor, got: Tensor) -> str:
    return f"{tuple(want.shape)} to {tuple(got.shape)}"


_OPAQUE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)


def fingerprint(value: object) -> object:
    """Something that is equal for two values, or for one value at two times, if nothing in them differs.

    Follows containers and the attributes of objects; what has neither is told by its identity. Values of
    ``cached_property`` do not count: they follow from the rest.
    """
    return _fingerprint(value, {})


def _fingerprint(value: object, seen: dict[int, tuple[int, object]]) -> object:
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes():
            return repr(value)
        case torch.dtype() | torch.device() | torch.Generator():
            return str(value)
        case Tensor():
            return _bits(value)
        case np.ndarray() | np.generic() | Image.Image():
            return type(value).__name__, value.tobytes()
    if id(value) in seen:
        return f"object {seen[id(value)][0]}"
    seen[id(value)] = len(seen), value  # held, or its id might become another's
    match value:
        case Mapping():
            return [(_fingerprint(key, seen), _fingerprint(item, seen)) for key, item in value.items()]
        case list() | tuple():
            return [_fingerprint(item, seen) for item in value]
        case set() | frozenset():
            return sorted(map(repr, value))
        case _ if isinstance(value, _OPAQUE):
            return id(value)
        case _:
            return _of_object(value, seen)


def _of_object(value: object, seen: dict[int, tuple[int, object]]) -> object:
    attributes = getattr(value, "__dict__", None)
    if attributes is None:
        return type(value).__name__, id(value)
    kept = {name: item for name, item in attributes.items() if not _is_cached(type(value), name)}
    return type(value).__name__, _fingerprint(kept, seen)


def _is_cached(cls: type, name: str) -> bool:
    return isinstance(getattr(cls, name, None), cached_property)


def _bits(value: Tensor) -> object:
    if value.is_meta:
        return "meta", tuple(value.shape), value.dtype
    plain = value.detach().cpu().contiguous()
    return tuple(plain.shape), str(plain.dtype), bytes(plain.view(-1).view(torch.uint8).numpy().tobytes())
