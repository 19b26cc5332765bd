"""Checks that a call computes its result and does nothing else, from any number of threads."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from ldmkit.testing.case import Case
from ldmkit.testing.check import check, require
from ldmkit.testing.surroundings import restored, surroundings
from ldmkit.testing.values import cloned, fingerprint, require_close, require_equal

CALLS = 20
ROUNDING = 1e-5
"""A new thread may split sums otherwise than the first."""
UNLIKELY = 271_828_182_845
"""A seed that no component sets by itself."""


@check("runs")
def deterministic(case: Case) -> None:
    """The same inputs give the same bits, whatever torch's generator holds, also built again from the same seed."""
    component = case.component()
    inputs = case.inputs(component)
    first = case.outputs(component, inputs, seed=0)
    require_equal(case.outputs(component, inputs, seed=0), first, "a second call")
    require_equal(case.outputs(component, inputs, seed=1), first, "another global seed")
    require_equal(case.outputs(case.component(), inputs), first, "building it again from the same seed")


@check("runs")
def leaves_its_inputs_alone(case: Case) -> None:
    """What it is given is the same after a call as before."""
    component = case.component()
    inputs = case.inputs(component)
    before = {name: fingerprint(value) for name, value in inputs.items()}
    with restored(0), torch.no_grad():
        case.call(component, inputs)
    changed = [name for name, value in inputs.items() if fingerprint(value) != before.get(name)]
    require(inputs.keys() == before.keys() and not changed, f"a call changes its inputs {changed or sorted(inputs)}")


@check("runs")
def leaves_its_surroundings_alone(case: Case) -> None:
    """Building and calling change nothing that belongs to the whole process: generators, defaults, grad mode, filters.

    Building may draw weights from torch's generator, but not seed it.
    """
    with restored(UNLIKELY):
        before = surroundings()
        component = case.build()
        after = {**surroundings(), "torch's generator": before["torch's generator"]}
        require(torch.initial_seed() == UNLIKELY, "building it seeds torch's generator")
        _require_unchanged(before, after, "building it")
    component = case.component()
    inputs = case.inputs(component)
    with restored(0):
        before = surroundings()
        case.call(component, cloned(inputs))
        _require_unchanged(before, surroundings(), "calling it")


def _require_unchanged(before: dict[str, object], after: dict[str, object], what: str) -> None:
    changed = [name for name, value in before.items() if after[name] != value]
    require(not changed, f"{what} changes {', '.join(changed)}")


@check("runs")
def keeps_nothing_of_a_call(case: Case) -> None:
    """A call writes nothing on the component: what it computes once per call belongs to the call."""
    component = case.component()
    inputs = case.inputs(component)
    before = {name: fingerprint(value) for name, value in _attributes(component).items()}
    case.outputs(component, inputs)
    after = {name: fingerprint(value) for name, value in _attributes(component).items()}
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    require(not changed, f"a call changes the component's {changed[:5]}")


def _attributes(component: Any) -> dict[str, object]:  # noqa: ANN401
    """Every attribute by its dotted name, submodules apart."""
    if not isinstance(component, torch.nn.Module):
        return {"attributes": component}
    return {
        f"{path}.{name}".lstrip("."): value
        for path, module in component.named_modules()
        for name, value in vars(module).items()
        if name != "_modules"
    }


@check("runs")
def leaves_no_tensors_behind(case: Case) -> None:
    """Many calls do not leave as many tensors alive; a cache of bounded size may fill."""
    component = case.component()
    inputs = case.inputs(component)
    case.outputs(component, inputs)
    gc.freeze()  # hides what lives already, so that only new tensors are counted
    try:
        for _ in range(CALLS):
            case.outputs(component, inputs)
        gc.collect()
        left = [tuple(value.shape) for value in gc.get_objects() if issubclass(type(value), Tensor)]
    finally:
        gc.unfreeze()
    require(len(left) < CALLS, f"{CALLS} calls leave {len(left)} tensors alive, of the shapes {sorted(set(left))[:3]}")


@check("runs", "deterministic")
def threads_share_it(case: Case) -> None:
    """Two threads with one instance and different inputs get what one thread gets, up to rounding."""
    component = case.component()
    rounds = [case.inputs(component, seed=seed) for seed in range(4)]
    serial = [case.outputs(component, inputs) for inputs in rounds]
    together = Barrier(2)

    def work(order: list[int]) -> dict[int, Any]:
        done = {}
        try:
            with torch.no_grad():
                for index in order:
                    together.wait(timeout=60)
                    done[index] = case.call(component, cloned(rounds[index]))
        except BaseException:
            together.abort()  # or the other thread would wait
            raise
        return done

    with restored(0), ThreadPoolExecutor(2) as pool:
        for results in pool.map(work, ([0, 1, 2, 3], [3, 2, 1, 0])):
            for index, result in results.items():
                require_close(result, serial[index], ROUNDING, "another thread")


CHECKS = (
    deterministic,
    leaves_its_inputs_alone,
    leaves_its_surroundings_alone,
    keeps_nothing_of_a_call,
    leaves_no_tensors_behind,
    threads_share_it,
)
