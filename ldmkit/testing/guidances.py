"""Checks of guidance: off at its neutral value, bound once, and as good per image as for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoise
from ldmkit.guidance import Guidance
from ldmkit.process import VP
from ldmkit.testing.case import SAMPLES, Case
from ldmkit.testing.check import Check, CheckFailed, check, not_applicable, require
from ldmkit.testing.surroundings import restored
from ldmkit.testing.use import bind
from ldmkit.testing.values import Inputs, distance, samples

SCALES = (0.5, 1.0, 3.0)
ROUNDING = 1e-5


@check("runs")
def keeps_the_shape_of_the_state(case: Case) -> None:
    """The guided estimate has the shape and the precision of the state, at every level."""
    guidance = case.component()
    inputs = case.inputs(guidance)
    levels = VP().levels(3)
    with restored(0), torch.no_grad():
        denoise = guidance(bind, inputs["cond"], inputs["uncond"], levels)
        for level in levels.stops[:-1]:
            x0 = denoise(inputs["x"].clone(), level)
            same = x0.shape == inputs["x"].shape and x0.dtype == inputs["x"].dtype
            require(same, f"the estimate is {x0.dtype} {tuple(x0.shape)}, the state {tuple(inputs['x'].shape)}")


@check("runs", "deterministic")
def neutral_value_is_off(case: Case) -> None:
    """At its neutral value it is the conditional model as it is."""
    if case.example.neutral is None:
        not_applicable("the example names no neutral options")
    guidance = case.component(case.example.neutral)
    inputs = case.inputs(guidance)
    with restored(0), torch.no_grad():
        expected = bind(inputs["cond"])(inputs["x"], VP().levels(3).start)
    off = distance(_guided(case, guidance, inputs), expected)
    require(off < ROUNDING, f"with {dict(case.example.neutral)} the estimate still differs by {off:.3g}")


@check("runs")
def binds_before_the_first_step(case: Case) -> None:
    """It binds when the call begins, not at its steps, and what it asks about at one level in one batch, cond last."""
    guidance = case.component()
    inputs = case.inputs(guidance)
    levels = VP().levels(3)
    bound: list[Conditioning] = []

    def counting(cond: Conditioning) -> Denoise:
        bound.append(cond)
        return bind(cond)

    with restored(0), torch.no_grad():
        denoise = guidance(counting, inputs["cond"], inputs["uncond"], levels)
        at_first = len(bound)
        for level in levels.stops[:-1]:
            denoise(inputs["x"].clone(), level)
    require(at_first > 0, "it binds nothing when the call begins")
    require(len(bound) == at_first, f"it binds {len(bound) - at_first} more times during the steps")
    sizes = [one.batch_size for one in bound]
    require(len(set(sizes)) == len(sizes), f"it binds batches of {sizes} samples; join what it asks about in one batch")
    for one in bound:
        vector, expected = one.filled().get("vector"), inputs["cond"].vector
        last = vector is not None and torch.equal(vector[-len(expected) :], expected)
        require(last, "the last rows that it binds are not cond: others wrap it and look for the condition there")


@check("runs")
def says_whether_it_needs_uncond(case: Case) -> None:
    """Where ``needs_uncond`` is false it works without one; where it is true it refuses to."""
    guidance: Guidance = case.component()
    inputs = {**case.inputs(guidance), "uncond": None}
    try:
        _guided(case, guidance, inputs)
    except ValueError as error:
        if guidance.needs_uncond:
            return
        raise CheckFailed(f"it says it needs no uncond, and without one: {error}") from error
    require(not guidance.needs_uncond, "it says it needs uncond and works without: the null is computed for nothing")


@check("runs")
def says_whether_it_needs_gradients(case: Case) -> None:
    """Where ``needs_grad`` is false it works in inference mode."""
    guidance: Guidance = case.component()
    if guidance.needs_grad:
        not_applicable("it needs gradients, so it is never called in inference mode")
    inputs = case.inputs(guidance)
    with restored(0), torch.inference_mode():
        case.call(guidance, inputs)


@check("runs", "deterministic")
def scale_may_be_one_per_image(case: Case) -> None:
    """With one scale per image, each image is guided as it is alone with its own."""
    option = case.example.per_image
    if option is None:
        not_applicable("the example names no option that may be one per image")
    mixed = case.component({option: SCALES})
    inputs = case.inputs(mixed)
    together = _guided(case, mixed, inputs)
    for i, scale in enumerate(SCALES):
        alone = _guided(case, case.component({option: scale}), samples(inputs, [i], SAMPLES))
        off = distance(together[i : i + 1], alone)
        require(off < ROUNDING, f"image {i} with its own {option} {scale} differs from it alone by {off:.3g}")


def _guided(case: Case, guidance: Any, inputs: Inputs) -> Tensor:  # noqa: ANN401
    x0: Tensor = case.outputs(guidance, inputs)["x0"]
    return x0


CHECKS: tuple[Check, ...] = (
    keeps_the_shape_of_the_state,
    neutral_value_is_off,
    binds_before_the_first_step,
    says_whether_it_needs_uncond,
    says_whether_it_needs_gradients,
    scale_may_be_one_per_image,
)
