"""Checks of backbones: shapes, slots, times, masks, and that binding changes nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Bindable
from ldmkit.testing.case import SAMPLES, Case
from ldmkit.testing.check import Check, CheckFailed, check, not_applicable, require
from ldmkit.testing.conditioners import rolled
from ldmkit.testing.surroundings import restored
from ldmkit.testing.use import TOKENS
from ldmkit.testing.values import Inputs, cloned, distance

ROUNDING = 1e-4
NOTICED = 1e-5
"""The least change of a prediction that is no rounding, as a share of its largest value."""
TOLD = ("context", "context_mask", "vector", "label")
STRANGERS = {
    "context": torch.ones(SAMPLES, TOKENS, 8),
    "vector": torch.ones(SAMPLES, 8),
    "label": torch.zeros(SAMPLES, dtype=torch.int64),
}


@check("runs")
def predicts_in_the_shape_of_the_state(case: Case) -> None:
    """The prediction has ``channels`` and the state's batch and sides, square or not, for one sample or several."""
    backbone = case.component()
    inputs = case.inputs(backbone)
    for count, height, width in ((1, 4, 4), (SAMPLES, 2, 4)):
        sides = height * backbone.multiple, width * backbone.multiple
        given = {key: value[:count] for key, value in inputs.items()}
        given["x"] = torch.ones(count, inputs["x"].shape[1], *sides)
        prediction = _predict(case, backbone, given)
        want = (count, backbone.channels, *sides)
        require(tuple(prediction.shape) == want, f"the prediction is {tuple(prediction.shape)}, the state {want}")


@check("runs")
def sides_are_multiples_of_what_it_declares(case: Case) -> None:
    """It takes states as small as ``multiple``, and refuses sides that are no multiples of it."""
    backbone = case.component()
    inputs = case.inputs(backbone)
    multiple, channels = backbone.multiple, inputs["x"].shape[1]
    _predict(case, backbone, {**inputs, "x": torch.ones(SAMPLES, channels, multiple, 3 * multiple)})
    if multiple == 1:
        return
    for height, width in ((multiple + 1, multiple), (2 * multiple, 2 * multiple - 1)):
        try:
            _predict(case, backbone, {**inputs, "x": torch.ones(SAMPLES, channels, height, width)})
        except ValueError:
            continue
        raise CheckFailed(f"a state of {height} x {width} is taken, though its multiple is {multiple}")


@check("runs", "deterministic")
def reads_the_slots_it_accepts(case: Case) -> None:
    """Changing any slot in ``accepts`` changes the prediction."""
    backbone = case.component()
    if not backbone.accepts:
        not_applicable("it accepts no slot")
    inputs = case.inputs(backbone)
    before = _predict(case, backbone, inputs)
    for slot in backbone.accepts:
        after = _predict(case, backbone, _with_other(inputs, slot, backbone.channels))
        require(distance(after, before) > NOTICED, f"it declares {slot} and does not read it")


def _with_other(inputs: Inputs, slot: str, channels: int) -> Inputs:
    if slot != "concat":
        return rolled(inputs, (slot,))
    x = inputs["x"].clone()
    x[:, channels:] = x[:, channels:].flip(0)
    return {**inputs, "x": x}


@check("runs")
def other_slots_are_refused(case: Case) -> None:
    """A slot that is not in ``accepts`` is refused: ignored in silence, a condition would do nothing."""
    backbone = case.component()
    inputs = case.inputs(backbone)
    strangers = {slot: value for slot, value in STRANGERS.items() if slot not in backbone.accepts}
    if not strangers:
        not_applicable("it accepts every slot")
    for slot, value in strangers.items():
        try:
            _predict(case, backbone, {**inputs, slot: value})
        except (ValueError, TypeError):
            continue
        raise CheckFailed(
            f"it takes {slot} without a word, which it does not declare in accepts {dict(backbone.accepts)}"
        )


@check("runs", "deterministic", "samples-are-independent")
def hidden_tokens_do_not_matter(case: Case) -> None:
    """Context that the mask hides has no influence, and a mask of ones is no mask."""
    backbone = case.component()
    if "context" not in backbone.accepts:
        not_applicable("it accepts no context")
    inputs = case.inputs(backbone)
    context = inputs["context"]
    shown = max(1, context.shape[1] // 2)
    mask = torch.arange(context.shape[1]).expand(context.shape[:2]) < shown
    given = {**inputs, "context_mask": mask}
    loud = {**given, "context": torch.where(mask[..., None], context, 10 * context + 5)}
    off = distance(_predict(case, backbone, loud), _predict(case, backbone, given))
    require(off < ROUNDING, f"tokens that the mask hides change the prediction by {off:.3g} of its largest value")
    short = {**given, "context": context[:, :shown], "context_mask": None}
    off = distance(_predict(case, backbone, short), _predict(case, backbone, given))
    require(off < ROUNDING, f"leaving hidden tokens out changes the prediction by {off:.3g}")
    ones, none = {**given, "context_mask": torch.ones_like(mask)}, {**given, "context_mask": None}
    off = distance(_predict(case, backbone, ones), _predict(case, backbone, none))
    require(off < ROUNDING, f"a mask of ones changes the prediction by {off:.3g}")


@check("runs", "deterministic", "samples-are-independent")
def times_are_real_numbers_one_per_sample(case: Case) -> None:
    """Every sample has its own time, which may be fractional; an integer is the same as the float that equals it."""
    backbone = case.component()
    inputs = case.inputs(backbone)
    one = {key: value[:1].expand(2, *value.shape[1:]) for key, value in inputs.items()}
    apart = _at(case, backbone, one, torch.tensor([10.0, 10.5]))
    require(distance(apart[1:], apart[:1]) > NOTICED, "10 and 10.5 are the same time to it: fractions are lost")
    mixed = _at(case, backbone, one, torch.tensor([10.0, 500.0]))
    for i, t in enumerate((10.0, 500.0)):
        alone = _at(case, backbone, one, torch.tensor([t, t]))
        require(distance(mixed[i], alone[i]) < ROUNDING, "a sample's prediction depends on the times of the others")
    whole = _at(case, backbone, one, torch.tensor([10, 500]))
    require(distance(whole, mixed) < ROUNDING, "integer times are not the floats that equal them")


def _at(case: Case, backbone: object, inputs: Inputs, t: Tensor) -> Tensor:
    return _predict(case, backbone, {**inputs, "t": t})


@check("runs", "deterministic")
def binding_changes_nothing(case: Case) -> None:
    """``bind(cond, times)`` predicts as ``forward`` does, at announced times and others, in several bindings."""
    backbone = case.component()
    if not isinstance(backbone, Bindable):
        not_applicable("it has no bind of its own")
    inputs = case.inputs(backbone)
    others = rolled(inputs, [slot for slot in TOLD if slot in inputs])
    announced = (999.0, 500.0, 0.25)
    with restored(0), torch.no_grad():
        first, second, unannounced = (
            backbone.bind(_told(given), times)
            for given, times in ((inputs, announced), (others, announced), (inputs, ()))
        )
        for t in (*announced, 731.5, 42.0):
            for bound, given in ((first, inputs), (second, others), (unannounced, inputs)):
                got = bound(given["x"].clone(), t)
                off = distance(got, _at(case, backbone, given, torch.full((SAMPLES,), t)))
                when = "a time that was announced" if t in announced else "a time that was not announced"
                require(off < ROUNDING, f"at t = {t}, {when}, bind differs from forward by {off:.3g}")


def _told(inputs: Inputs) -> Conditioning:
    return Conditioning(**{slot: inputs[slot].clone() for slot in TOLD if slot in inputs})


@check("runs")
def gradients_reach_the_state(case: Case) -> None:
    """The prediction may be differentiated with respect to the state, as guidance by a loss needs."""
    backbone = case.component()
    inputs = cloned(case.inputs(backbone))
    inputs["x"].requires_grad_(True)
    with restored(0), torch.enable_grad():
        prediction: Tensor = backbone(**inputs)
        require(prediction.requires_grad, "the prediction does not depend on the state")
        (gradient,) = torch.autograd.grad((prediction * torch.randn(prediction.shape)).sum(), inputs["x"])
    require(bool(gradient.isfinite().all()) and bool(gradient.any()), "the gradient is zero or not finite")


def _predict(case: Case, backbone: Any, inputs: Inputs) -> Tensor:  # noqa: ANN401
    prediction: Tensor = case.outputs(backbone, inputs)["prediction"]
    return prediction


CHECKS: tuple[Check, ...] = (
    predicts_in_the_shape_of_the_state,
    sides_are_multiples_of_what_it_declares,
    reads_the_slots_it_accepts,
    other_slots_are_refused,
    hidden_tokens_do_not_matter,
    times_are_real_numbers_one_per_sample,
    binding_changes_nothing,
    gradients_reach_the_state,
)
