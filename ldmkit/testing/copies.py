"""Checks of a component's copies: through a file, through ``copy`` and through ``pickle``."""

from __future__ import annotations

import copy
import pickle

from safetensors.torch import load, save
from torch import Tensor, nn

from ldmkit.composition import part_of
from ldmkit.registry import build_part
from ldmkit.testing.case import Case
from ldmkit.testing.check import check, not_applicable, require
from ldmkit.testing.surroundings import restored
from ldmkit.testing.values import require_equal
from ldmkit.weights.native import without_initialisation


@check("runs", "deterministic", "can-be-written-down")
def survives_a_file(case: Case) -> None:
    """Its state dict, through a safetensors file, makes another instance give the same bits.

    The other instance is built as loading a model builds it: from what the first one writes down, and without drawing
    weights. What was not a keyword that is kept must come out of the file, such as a tokenizer read from a path.
    """
    component = case.component()
    if not isinstance(component, nn.Module):
        not_applicable("it is no module")
    inputs = case.inputs(component)
    state = component.state_dict(keep_vars=True)
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    require(not strange, f"{strange} in the state dict are no tensors, and files hold nothing else")
    stored: dict[int, str] = {}  # tied weights are stored once
    for name, value in state.items():
        stored.setdefault(id(value), name)
    loaded = load(save({name: state[name].detach().contiguous() for name in stored.values()}))
    with restored(1), without_initialisation():
        other = build_part(case.example.kind, part_of(case.example.kind, component)).eval()
    other.load_state_dict({name: loaded[stored[id(value)]] for name, value in state.items()})
    require_equal(case.outputs(other, inputs), case.outputs(component, inputs), "saving and loading")


@check("runs", "deterministic")
def survives_deepcopy(case: Case) -> None:
    """A deep copy gives the same bits."""
    component = case.component()
    inputs = case.inputs(component)
    with restored(1):
        other = copy.deepcopy(component)
    require_equal(case.outputs(other, inputs), case.outputs(component, inputs), "copying the component")


@check("runs", "deterministic")
def survives_pickle(case: Case) -> None:
    """What comes out of a pickle gives the same bits: other processes receive components so."""
    component = case.component()
    inputs = case.inputs(component)
    with restored(1):
        other = pickle.loads(pickle.dumps(component))
    require_equal(case.outputs(other, inputs), case.outputs(component, inputs), "pickling the component")


CHECKS = (survives_a_file, survives_deepcopy, survives_pickle)
