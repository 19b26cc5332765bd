"""Checks of tasks: the batch is what is declared, the same for sampling and for training, and mistakes are refused."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch

from ldmkit.tasks.contract import Task
from ldmkit.testing.case import SAMPLES, Case
from ldmkit.testing.check import Check, CheckFailed, check, not_applicable, require
from ldmkit.testing.surroundings import restored
from ldmkit.testing.values import Inputs, cloned, require_equal


@check("runs")
def fills_what_it_declares(case: Case) -> None:
    """The batch has the keys in ``fills`` and no others, each with an entry per sample."""
    task: Task = case.component()
    for count in (1, SAMPLES):
        prepared = case.outputs(task, case.inputs(task, count))
        require(prepared.keys() == set(task.fills), f"it declares {list(task.fills)} and fills {sorted(prepared)}")
        for key, value in prepared.items():
            size = len(value) if isinstance(value, Sized) else None
            require(size == count, f"for {count} samples it fills '{key}' with {size}")


@check("runs")
def takes_what_it_declares(case: Case) -> None:
    """The example's inputs are keywords in ``takes``."""
    task: Task = case.component()
    strange = sorted(case.inputs(task).keys() - set(task.takes))
    require(not strange, f"the example gives it {strange}, which is not in takes {list(task.takes)}")


@check("runs", "deterministic")
def prepares_for_training_as_for_sampling(case: Case) -> None:
    """With gradients, as in training, and in inference mode, as in sampling, the batch is the same."""
    task: Task = case.component()
    inputs = case.inputs(task)
    with restored(0), torch.enable_grad():
        training = case.call(task, cloned(inputs))
    with restored(0), torch.inference_mode():
        sampling = case.call(task, cloned(inputs))
    require_equal(sampling, training, "sampling instead of training")


@check("runs")
def missing_input_is_refused(case: Case) -> None:
    """Nothing at all is refused where something must be filled."""
    task: Task = case.component()
    if not task.fills:
        not_applicable("it fills nothing, so it needs nothing")
    _require_refused(case, task, {}, "nothing")
    _require_refused(case, task, dict.fromkeys(task.takes), "None for every keyword")


@check("runs")
def strange_input_is_refused(case: Case) -> None:
    """An object that is none of its inputs is refused, keyword by keyword, by a ValueError or TypeError."""
    task: Task = case.component()
    inputs = case.inputs(task)
    if not inputs:
        not_applicable("it takes no input")
    for key in inputs:
        _require_refused(case, task, {**inputs, key: object()}, f"an object() as '{key}'")
        _require_refused(case, task, {**inputs, key: [object()] * SAMPLES}, f"a list of objects as '{key}'")


def _require_refused(case: Case, task: Any, inputs: Inputs, what: str) -> None:  # noqa: ANN401
    try:
        with restored(0):
            case.call(task, inputs)
    except (ValueError, TypeError):
        return
    except Exception as error:
        raise CheckFailed(f"{what} ends in {type(error).__name__} from within: refuse it with a ValueError") from error
    raise CheckFailed(f"{what} is taken without a word")


CHECKS: tuple[Check, ...] = (
    fills_what_it_declares,
    takes_what_it_declares,
    prepares_for_training_as_for_sampling,
    missing_input_is_refused,
    strange_input_is_refused,
)
