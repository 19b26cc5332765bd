"""Checks of what every component is: built from keywords that can be written down, and what its kind asks for."""

from __future__ import annotations

from typing import Any

from torch import nn

from ldmkit.composition import part_of
from ldmkit.errors import OptionError
from ldmkit.registry import build_part
from ldmkit.testing.case import Case
from ldmkit.testing.check import CheckFailed, check, require
from ldmkit.testing.surroundings import restored
from ldmkit.testing.values import leaves
from ldmkit.weights.native import without_initialisation

MODULES = ("first-stage", "backbone", "conditioner")
"""The kinds whose components are always modules."""

STRANGER = "no_component_takes_this"


@check()
def builds(case: Case) -> None:
    """It builds by name from the example's keywords."""
    built = case.component()
    require(built is not None, f"building {case.example} gives None")


@check("builds")
def is_what_its_kind_asks_for(case: Case) -> None:
    """It has the attributes and methods of its kind."""
    built = case.component()
    names = ", ".join(sorted(name for name in dir(case.protocol) if not name.startswith("_")))
    require(
        isinstance(built, case.protocol),
        f"{type(built).__name__} is no {case.protocol.__name__}, which has {names or '__call__'}",
    )
    if case.example.kind in MODULES:
        require(isinstance(built, nn.Module), f"{type(built).__name__} is no nn.Module")


@check("is-what-its-kind-asks-for")
def runs(case: Case) -> None:
    """It runs on its example."""
    component = case.component()
    case.outputs(component, case.inputs(component))


@check("builds")
def unknown_keyword_is_refused(case: Case) -> None:
    """A keyword that it does not take is refused by name."""
    try:
        with restored(0):
            case.build({STRANGER: 1})
    except TypeError as error:
        require(STRANGER in str(error), f"the error does not name the keyword: {error}")
        return
    raise CheckFailed(f"the keyword '{STRANGER}' is taken without a word: a typing error would be too")


@check("unknown-keyword-is-refused")
def can_be_written_down(case: Case) -> None:
    """Its keywords are attributes of the same name, and what they say builds the same component again.

    A module is built again as saving a model does, without drawing its weights, and must have the same tensors.
    """
    component = case.component()
    part = part_of(case.example.kind, component)
    if not isinstance(component, nn.Module):
        again = build_part(case.example.kind, part)
        require(part_of(case.example.kind, again) == part, f"{part} builds {part_of(case.example.kind, again)}")
        return
    try:
        with restored(0), without_initialisation():
            again = build_part(case.example.kind, part)
    except OptionError as error:
        raise CheckFailed(f"its own keywords do not build it: {error}") from error
    ours, theirs = layout(component), layout(again)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    require(not different, f"{dict(part.options)} builds a module that differs in the tensors {different[:5]}")


def layout(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the state dict; () for the data that ``get_extra_state`` gives, of any length."""
    state: dict[str, Any] = module.state_dict()
    return {name: () if name.endswith("_extra_state") else tuple(value.shape) for name, value in leaves(state).items()}


CHECKS = (builds, is_what_its_kind_asks_for, runs, unknown_keyword_is_refused, can_be_written_down)
