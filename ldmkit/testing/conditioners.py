"""Checks of conditioners: slots and keys as declared, and a null that says nothing."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ldmkit.conditioning import SLOTS, AlsoReads, Conditioning, Joint, where
from ldmkit.testing.case import SAMPLES, Case
from ldmkit.testing.check import Check, CheckFailed, check, not_applicable, require
from ldmkit.testing.surroundings import restored
from ldmkit.testing.use import has_null
from ldmkit.testing.values import (
    Inputs,
    cloned,
    distance,
    fingerprint,
    leaves,
    require_close,
    require_equal,
    samples,
)

SIZES = {"context": 2, "vector": 1, "concat": 1}
"""The dimension of each slot that its declared size is the size of; a label's is the number of classes."""

EXACT = 1e-6


@check("runs")
def fills_the_slots_it_declares(case: Case) -> None:
    """It fills exactly the slots in ``provides``, in the sizes declared, one entry per sample."""
    component = case.component()
    unknown = [slot for slot in component.provides if slot not in SLOTS]
    require(not unknown, f"it declares unknown slots {unknown}; the slots are {list(SLOTS)}")
    for count in (1, SAMPLES):
        cond: Conditioning = case.outputs(component, case.inputs(component, count))["cond"]
        filled = cond.filled()
        slots = filled.keys() - {"context_mask"}
        require(slots == set(component.provides), f"it declares {sorted(component.provides)} and fills {sorted(slots)}")
        require(cond.batch_size == count, f"for {count} samples it gives {cond.batch_size}")
        for slot, size in component.provides.items():
            _require_size(slot, filled[slot], size)
        if cond.context_mask is not None:
            require(bool(cond.context_mask.any(dim=1).all()), "a sample has no token that may be attended to")


def _require_size(slot: str, value: Tensor, size: int) -> None:
    if slot != "label":
        given = value.shape[SIZES[slot]]
        require(given == size, f"it declares {slot} of size {size} and gives {given}, in shape {tuple(value.shape)}")
    elif value.numel():
        low, high = int(value.min()), int(value.max())
        require(low >= 0 and high < size, f"it declares {size} classes and gives labels from {low} to {high}")


@check("runs", "deterministic")
def reads_the_keys_it_declares(case: Case) -> None:
    """The keys in ``reads`` are enough, and of the others only those in ``also_reads`` make a difference."""
    component = case.component()
    inputs = case.inputs(component)
    absent = [key for key in component.reads if key not in inputs]
    require(not absent, f"it declares that it reads {absent}, which the example does not give it")
    declared = {*component.reads, *(component.also_reads if isinstance(component, AlsoReads) else ())}
    try:
        case.outputs(component, {key: inputs[key] for key in component.reads})
    except KeyError as error:
        raise CheckFailed(f"it reads {error}, which is not in its reads {component.reads}") from error
    told = case.outputs(component, {key: value for key, value in inputs.items() if key in declared})
    undeclared = sorted(inputs.keys() - declared)
    require_equal(told, case.outputs(component, inputs), f"leaving out {undeclared}, which it does not declare,")


@check("reads-the-keys-it-declares", "deterministic")
def every_key_it_reads_matters(case: Case) -> None:
    """Changing any one of the keys in ``reads`` changes what it gives."""
    component = case.component()
    inputs = case.inputs(component)
    before = case.outputs(component, inputs)["cond"]
    for key in component.reads:
        changed = rolled(inputs, (key,))
        require(
            fingerprint(changed[key]) != fingerprint(inputs[key]),
            f"the example gives every sample the same '{key}': let batch() make samples that differ",
        )
        after = case.outputs(component, changed)["cond"]
        require(fingerprint(leaves(before)) != fingerprint(leaves(after)), f"it declares '{key}' and does not read it")


@check("reads-the-keys-it-declares")
def missing_key_is_refused(case: Case) -> None:
    """As a source of a model it refuses a batch without one of its keys, by name."""
    component = case.component()
    inputs = case.inputs(component)
    if not component.reads:
        not_applicable("it reads no key")
    source = Joint({"source": component})
    for key in component.reads:
        try:
            source({name: value for name, value in inputs.items() if name != key})
        except KeyError as error:
            require(key in str(error), f"without '{key}' the error does not name it: {error}")
        else:
            raise CheckFailed(f"a batch without '{key}' is taken without a word")


@check("runs")
def null_fills_the_same_slots(case: Case) -> None:
    """``null`` fills the same slots with the same shapes and precision; where there is none it is refused."""
    component = case.component()
    inputs = case.inputs(component)
    if not has_null(component):
        _require_no_null(component, inputs)
        return
    result = case.outputs(component, inputs)
    cond, null = result["cond"].filled(), result["null"].filled()
    require(null.keys() == cond.keys(), f"its null fills {sorted(null)}, it fills {sorted(cond)}")
    for slot, value in cond.items():
        other = null[slot]
        require(
            other.shape == value.shape and other.dtype == value.dtype,
            f"its null has {slot} {other.dtype} {tuple(other.shape)}, it gives {value.dtype} {tuple(value.shape)}",
        )
    keep = torch.arange(SAMPLES) % 2 == 0
    mixed = where(keep, result["cond"], result["null"]).filled()
    require(mixed.keys() == cond.keys(), "dropout does not mix it with its null")


def _require_no_null(component: Any, inputs: Inputs) -> None:  # noqa: ANN401
    try:
        with restored(0):
            component.null(cloned(inputs))
    except ValueError:
        return
    raise CheckFailed("its has_null is false, and null() gives one: refuse it with a ValueError")


@check("null-fills-the-same-slots", "samples-are-independent")
def null_says_nothing(case: Case) -> None:
    """``null`` is the same for two inputs of equal shape, but for what the example declares that it keeps."""
    component = case.component()
    if not has_null(component):
        not_applicable("its has_null is false")
    inputs = case.inputs(component)
    told = [key for key in inputs if key not in case.example.keeps]
    null = case.outputs(component, inputs)["null"]
    other = case.outputs(component, rolled(inputs, told))["null"]
    require_close({"null": other}, {"null": null}, EXACT, "another input")


@check("fills-the-slots-it-declares", "deterministic")
def padding_does_not_matter(case: Case) -> None:
    """The tokens of a sample that may be attended to are the same alone and beside a longer sample."""
    component = case.component()
    inputs = case.inputs(component)
    together: Conditioning = case.outputs(component, inputs)["cond"]
    if together.context is None or together.context_mask is None:
        not_applicable("it gives no context_mask")
    if bool(together.context_mask.all()):
        not_applicable("no token of the example's samples is masked")
    for i in range(SAMPLES):
        alone: Conditioning = case.outputs(component, samples(inputs, [i], SAMPLES))["cond"]
        require(alone.context is not None and alone.context_mask is not None, f"sample {i} alone has no mask")
        ours, theirs = _attended(alone, 0), _attended(together, i)
        require(len(ours) == len(theirs), f"sample {i} has {len(ours)} tokens alone and {len(theirs)} beside others")
        off = distance(ours, theirs)
        require(off < 1e-4, f"the tokens of sample {i} differ by {off:.3g} of the largest when it is padded")


def _attended(cond: Conditioning, i: int) -> Tensor:
    return cast(Tensor, cond.context)[i][cast(Tensor, cond.context_mask)[i]]


def rolled(inputs: Inputs, keys: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """The inputs with the samples of these keys moved on by one."""
    order = [(i + 1) % SAMPLES for i in range(SAMPLES)]
    return {key: samples(value, order, SAMPLES) if key in keys else value for key, value in inputs.items()}


CHECKS: tuple[Check, ...] = (
    fills_the_slots_it_declares,
    reads_the_keys_it_declares,
    every_key_it_reads_matters,
    missing_key_is_refused,
    null_fills_the_same_slots,
    null_says_nothing,
    padding_does_not_matter,
)
