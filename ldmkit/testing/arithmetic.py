"""Checks of numbers: independent samples, finite values, gradients, other precisions, devices and memory layouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmkit.testing.case import SAMPLES, Case
from ldmkit.testing.check import check, not_applicable, require
from ldmkit.testing.surroundings import restored
from ldmkit.testing.values import Inputs, Leaves, cloned, leaves, mapped, require_close, samples
from ldmkit.testing.values import cast as in_precision

ROUNDING = 1e-4
"""What float32 may lose by computing in another order, as a share of the largest value."""


@check("runs", "deterministic", "padding-does-not-matter")
def samples_are_independent(case: Case) -> None:
    """A sample's result is the same alone, in a batch, and in a batch in another order.

    Tokens that a mask hides do not count, so a text alone may be padded less than beside a longer one.
    """
    component = case.component()
    inputs = case.inputs(component)
    together = case.outputs(component, inputs)
    for i in range(SAMPLES):
        alone = case.outputs(component, samples(inputs, [i], SAMPLES))
        _require_same_sample(alone, samples(together, [i], SAMPLES), f"leaving sample {i} alone")
    order = list(reversed(range(SAMPLES)))
    turned = case.outputs(component, samples(inputs, order, SAMPLES))
    _require_same_sample(turned, samples(together, order, SAMPLES), "another order of the samples")


def _require_same_sample(got: Any, want: Any, what: str) -> None:  # noqa: ANN401
    ours, theirs = leaves(got), leaves(want)
    for name in ours.keys() & theirs.keys():
        ours[name], theirs[name] = _equally_long(ours[name], theirs[name])
    require_close(ours, theirs, ROUNDING, what)


def _equally_long(a: Any, b: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Two tensors that differ in dimension 1, tokens, with zeros where one is shorter."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.ndim != b.ndim or a.ndim not in (2, 3):
        return a, b
    length = max(a.shape[1], b.shape[1])
    return _padded(a, length), _padded(b, length)


def _padded(x: Tensor, length: int) -> Tensor:
    return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, length - x.shape[1]))


@check("runs")
def finite_stays_finite(case: Case) -> None:
    """Finite inputs give finite outputs, and so do zeros in place of every number."""
    component = case.component()
    inputs = case.inputs(component)
    zeros = mapped(inputs, lambda x: torch.zeros_like(x) if x.is_floating_point() else x.clone())
    for what, given in (("its example", inputs), ("zeros", zeros)):
        for name, value in numbers(case.outputs(component, given)).items():
            require(bool(value.isfinite().all()), f"{name} is not finite for {what}")


@check("runs")
def gradients_reach_what_is_trained(case: Case) -> None:
    """Every parameter that may be trained gets a gradient that is finite and not zero."""
    component = _module(case)
    trained = {name: p for name, p in component.named_parameters() if p.requires_grad}
    if not trained:
        not_applicable("it has no trainable parameters")
    inputs = case.inputs(component)
    with restored(0), torch.enable_grad():
        loss = (
            case.example.loss(component, cloned(inputs)) if case.example.loss else _projection(case, component, inputs)
        )
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    gradients = dict(zip(trained, found, strict=True))
    without = [name for name, gradient in gradients.items() if gradient is None or not bool(gradient.any())]
    require(not without, f"no gradient reaches {without[:5]}: train it, or freeze it with requires_grad_(False)")
    wild = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    require(not wild, f"the gradient of {wild[:5]} is not finite")


def _projection(case: Case, component: nn.Module, inputs: Inputs) -> Tensor:
    """A random direction of all outputs: a sum of squares would be blind behind a normalisation."""
    total = torch.zeros(())
    for value in numbers(case.call(component, cloned(inputs))).values():
        if value.requires_grad:
            total = total + (value * torch.randn(value.shape)).sum()
    require(total.requires_grad, "no output depends on a parameter")
    return total


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that do something else in training mode."""


@check("runs", "deterministic")
def frozen_parts_stay_as_they_are(case: Case) -> None:
    """``train()`` leaves a frozen part in eval mode and frozen.

    A part is frozen where none of its parameters is trained. Single layers without a mode of their own do not count.
    """
    component = _module(case)
    frozen = {name: module for name, module in component.named_modules() if _has_mode(module) and _is_frozen(module)}
    if not frozen:
        not_applicable("it has no frozen part")
    component.train()
    awake = [name for name, module in frozen.items() if module.training]
    require(not awake, f"train() puts the frozen {awake[:5]} in training mode: override train to keep it in eval mode")
    trained = [name for name, module in frozen.items() if not _is_frozen(module)]
    require(not trained, f"train() unfreezes {trained[:5]}")


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _has_mode(module: nn.Module) -> bool:
    return any(True for _ in module.children()) or isinstance(module, NORMS)


@check("runs", "deterministic")
def runs_in_float64(case: Case) -> None:
    """In float64 it gives float64, and what float32 gives up to rounding."""
    _require_precision(case, torch.float64)
    component = _module(case)
    inputs = case.inputs(component)
    single = case.outputs(component, inputs)
    double = case.outputs(component.double(), in_precision(inputs, torch.float64))
    require_close(double, single, 10 * ROUNDING, "float64")


@check("runs")
def runs_in_bfloat16(case: Case) -> None:
    """In bfloat16 it gives finite bfloat16."""
    _require_precision(case, torch.bfloat16)


def _require_precision(case: Case, dtype: torch.dtype) -> None:
    component = _module(case)
    if dtype not in case.example.dtypes:
        not_applicable(f"the example leaves {dtype} out")
    given = in_precision(case.inputs(component), dtype)
    for name, value in numbers(case.outputs(component.to(dtype), given)).items():
        require(value.dtype == dtype, f"{name} is {value.dtype} where weights and inputs are {dtype}")
        require(bool(value.isfinite().all()), f"{name} is not finite in {dtype}")


@check("runs", "deterministic")
def runs_on_a_gpu(case: Case) -> None:
    """Moved to a GPU it gives there what it gives on the CPU, up to rounding."""
    component = _module(case)
    if not torch.cuda.is_available():
        not_applicable("there is no CUDA device here")
    inputs = case.inputs(component)
    expected = case.outputs(component, inputs)
    with without_tf32():
        got = case.outputs(component.to("cuda"), mapped(inputs, lambda x: x.to("cuda")))
    elsewhere = [name for name, value in leaves(got).items() if isinstance(value, Tensor) and not value.is_cuda]
    require(not elsewhere, f"{elsewhere} stay on the CPU")
    require_close(got, expected, 10 * ROUNDING, "the GPU")


@contextmanager
def without_tf32() -> Iterator[None]:
    """Full float32 on a GPU."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


@check("runs", "deterministic")
def channels_last_changes_nothing(case: Case) -> None:
    """With weights and inputs in the memory layout ``channels_last`` it gives the same, up to rounding."""
    component = _module(case)
    inputs = case.inputs(component)
    tensors = [*component.parameters(), *numbers(inputs).values()]
    if not any(x.ndim == 4 for x in tensors):
        not_applicable("it has no weights or inputs of four dimensions")
    expected = case.outputs(component, inputs)
    cast(Any, component).to(memory_format=torch.channels_last)  # torch's own stubs disagree between versions
    given = mapped(inputs, lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.clone())
    require_close(case.outputs(component, given), expected, ROUNDING, "channels_last")


@check("runs", "deterministic")
def compiling_changes_nothing(case: Case) -> None:
    """Under ``torch.compile`` with the backend ``eager`` it gives the same, up to rounding.

    A backbone, and a first stage's ``encode`` and ``decode``, must be one graph (``fullgraph``). A conditioner, which
    runs once a call, may look at its values to refuse bad ones and may break its graph there.
    """
    component = _module(case)
    inputs = case.inputs(component)
    expected = case.outputs(component, inputs)
    torch._dynamo.reset()
    try:
        match case.example.kind:
            case "first-stage":
                for name in ("encode", "decode"):
                    setattr(component, name, torch.compile(getattr(component, name), backend="eager", fullgraph=True))
            case kind:
                component.compile(backend="eager", fullgraph=kind == "backbone")
        require_close(case.outputs(component, inputs), expected, ROUNDING, "compiling")
    finally:
        torch._dynamo.reset()


def numbers(value: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """The floating-point tensors in a structure, by path."""
    found: Leaves = leaves(value)
    return {name: x for name, x in found.items() if isinstance(x, Tensor) and x.is_floating_point()}


def _module(case: Case) -> nn.Module:
    component = case.component()
    if not isinstance(component, nn.Module):
        not_applicable("it is no module")
    return component


VALUES = (samples_are_independent, finite_stays_finite)
MODULES = (
    gradients_reach_what_is_trained,
    frozen_parts_stay_as_they_are,
    runs_in_float64,
    runs_in_bfloat16,
    runs_on_a_gpu,
    channels_last_changes_nothing,
    compiling_changes_nothing,
)
