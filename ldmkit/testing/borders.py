"""Checks that what does not fit is refused at the border: by ``ValueError`` or ``TypeError``, before any layer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldmkit.testing.case import Case
from ldmkit.testing.check import Check, CheckFailed, check, not_applicable, require
from ldmkit.testing.surroundings import restored
from ldmkit.testing.values import Inputs, cloned

Spoil = Callable[[str, Tensor], Tensor | None]
"""(key, tensor) -> a wrong one in its place; None where there is none."""


@check("runs")
def wrong_rank_is_refused(case: Case) -> None:
    """A tensor with a dimension too many is refused."""
    _require_refused(case, lambda key, x: x[None])


@check("runs")
def wrong_width_is_refused(case: Case) -> None:
    """Twice the channels are refused, of an image, a state or a map, and so is a backbone's context or vector."""
    backbone = case.example.kind == "backbone"

    def doubled(key: str, x: Tensor) -> Tensor | None:
        if backbone and key in ("context", "vector"):
            return torch.cat([x, x], dim=-1)
        return torch.cat([x, x], dim=1) if x.ndim == 4 else None

    _require_refused(case, doubled)


@check("runs")
def wrong_dtype_is_refused(case: Case) -> None:
    """Integers in place of floating point are refused, and floating point in place of integers or bool.

    A backbone takes any time, and may bring context and vector to its own precision.
    """
    free = ("t", "context", "vector") if case.example.kind == "backbone" else ()

    def other(key: str, x: Tensor) -> Tensor | None:
        if key in free:
            return None
        return x.long() if x.is_floating_point() else x.float()

    _require_refused(case, other)


def _require_refused(case: Case, spoil: Spoil) -> None:
    component = case.component()
    inputs = case.inputs(component)
    calls = _entrances(case, component)
    wrong = {key: spoil(key, inputs[key]) for key in calls if isinstance(inputs.get(key), Tensor)}
    tried = {key: value for key, value in wrong.items() if value is not None}
    if not tried:
        not_applicable("nothing that it is given could be wrong in this way")
    for key, value in tried.items():
        what = f"'{key}' as {describe(value)}, where {describe(inputs[key])} is right,"
        _require_one_refused(component, calls[key], {**inputs, key: value}, what)


def _entrances(case: Case, component: Any) -> dict[str, Callable[[Inputs], object]]:  # noqa: ANN401
    """Key -> the call through which it enters the component."""
    match case.example.kind:
        case "first-stage":
            return {
                "image": lambda given: component.encode(given["image"]),
                "z": lambda given: component.decode(given["z"]),
            }
        case "conditioner":
            return dict.fromkeys(component.reads, component)
        case _:
            return dict.fromkeys(case.inputs(component), lambda given: case.call(component, given))


def _require_one_refused(component: object, call: Callable[[Inputs], object], given: Inputs, what: str) -> None:
    with layers_that_run(component) as layers:
        try:
            with restored(0), torch.no_grad():
                call(cloned(given))
        except (ValueError, TypeError):
            require(not layers, f"{what} is refused after {layers[:3]} ran: look at it first")
            return
        except Exception as error:
            raise CheckFailed(
                f"{what} ends in {type(error).__name__} from within: refuse it with a ValueError or TypeError"
            ) from error
    raise CheckFailed(f"{what} is taken without a word")


@contextmanager
def layers_that_run(component: object) -> Iterator[list[str]]:
    """The names of the layers that run meanwhile; a layer is a module without children."""
    names: list[str] = []
    layers = component.named_modules() if isinstance(component, nn.Module) else ()
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, name=name: names.append(name))
        for name, layer in layers
        if name and not any(True for _ in layer.children())
    ]
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()


def describe(x: Tensor) -> str:
    """``float32 (2, 3)``."""
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


CHECKS: tuple[Check, ...] = (wrong_rank_is_refused, wrong_width_is_refused, wrong_dtype_is_refused)
