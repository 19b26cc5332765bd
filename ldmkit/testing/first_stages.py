"""Checks of first stages: shapes, scale, codes, and what noise means to ``encode``."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ldmkit.composition import FirstStage
from ldmkit.testing.case import SAMPLES, Case
from ldmkit.testing.check import Check, CheckFailed, check, not_applicable, require
from ldmkit.testing.surroundings import restored
from ldmkit.testing.values import Inputs, distance, require_close

ROUNDING = 1e-4
ALL_CODES = 65_536
"""Codebooks up to this size are tried whole."""


@runtime_checkable
class Coded(Protocol):
    """A first stage with a codebook."""

    codebook_size: int

    def to_indices(self, z: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to codes (B, h, w)."""

    def from_indices(self, indices: Tensor) -> Tensor:
        """Codes (B, h, w) to scaled latents (B, C, h, w)."""


@check("runs")
def shapes_follow_its_factor(case: Case) -> None:
    """``encode`` divides both sides by ``factor`` and gives ``channels``; ``decode`` gives the image's shape back."""
    stage: FirstStage = case.component()
    f = stage.factor
    require(f >= 1 and stage.channels >= 1 and stage.image_channels >= 1, "factor and channels are at least 1")
    for count, height, width in ((1, 2 * f, 4 * f), (2, 4 * f, 2 * f), (1, 4 * f, 4 * f)):
        image = torch.zeros(count, stage.image_channels, height, width)
        z = _quietly(stage.encode, image)
        _require_shape("encode", z, (count, stage.channels, height // f, width // f), image)
        _require_shape("decode", _quietly(stage.decode, z), tuple(image.shape), z)


def _require_shape(what: str, got: Tensor, want: tuple[int, ...], given: Tensor) -> None:
    require(tuple(got.shape) == want, f"{what} gives {tuple(got.shape)} for {tuple(given.shape)}, not {want}")


@check("runs")
def odd_sides_are_refused(case: Case) -> None:
    """An image whose sides are not multiples of ``factor`` is refused by ``encode``."""
    stage: FirstStage = case.component()
    if stage.factor == 1:
        not_applicable("its factor is 1: every side is a multiple")
    side = 4 * stage.factor
    for height, width in ((side + 1, side), (side, side - 1)):
        try:
            _quietly(stage.encode, torch.zeros(1, stage.image_channels, height, width))
        except ValueError:
            continue
        raise CheckFailed(f"an image of {height} x {width} is taken, though its factor is {stage.factor}")


@check("runs", "deterministic")
def scale_is_applied_once_and_undone(case: Case) -> None:
    """Twice the buffer ``scale`` makes latents twice as large and leaves what they decode to as it was."""
    stage = case.component()
    scale = dict(stage.named_buffers()).get("scale")
    if scale is None:
        not_applicable("it has no buffer 'scale'")
    inputs = case.inputs(stage)
    z, image = _quietly(stage.encode, inputs["image"]), _quietly(stage.decode, inputs["z"])
    cast(Tensor, scale).mul_(2)
    off = distance(_quietly(stage.encode, inputs["image"]), 2 * z)
    require(off < ROUNDING, f"twice the scale makes latents differ from twice the latents by {off:.3g}")
    off = distance(_quietly(stage.decode, 2 * inputs["z"]), image)
    require(off < ROUNDING, f"decode does not undo the scale: images differ by {off:.3g}")


@check("runs", "deterministic")
def noise_draws_from_the_posterior(case: Case) -> None:
    """``encode(image, noise)`` is the mode plus a spread times the noise, or the mode where nothing is drawn.

    No noise means the mode, as zeros do; the spread does not depend on the noise.
    """
    stage = case.component()
    inputs = case.inputs(stage)
    mode, drawn, none, twice = (_encoded(stage, inputs, factor) for factor in (None, 1.0, 0.0, 2.0))
    if torch.equal(mode, drawn):
        return
    off = distance(none, mode)
    require(off < ROUNDING, f"noise of zeros differs from no noise by {off:.3g}: no noise means the mode")
    off = distance(twice - mode, 2 * (drawn - mode))
    require(off < ROUNDING, f"twice the noise moves the latent by something else than twice as much, {off:.3g}")
    still = drawn - mode == 0
    require(not bool(still[inputs["noise"] != 0].any()), "some elements of the latent do not move with their noise")


@check("noise-draws-from-the-posterior")
def noise_of_another_shape_is_refused(case: Case) -> None:
    """Noise for one image is not shared by several: another shape than the latent's is refused."""
    stage = case.component()
    inputs = case.inputs(stage)
    if torch.equal(_encoded(stage, inputs, None), _encoded(stage, inputs, 1.0)):
        not_applicable("noise has no effect on it")
    try:
        _quietly(stage.encode, inputs["image"], inputs["noise"][:1])
    except ValueError:
        return
    raise CheckFailed(f"one draw is shared by {SAMPLES} images")


@check("runs", "deterministic")
def codes_come_back(case: Case) -> None:
    """Every code becomes a latent that is nearest to that code, and decoding it is decoding its own code."""
    stage = case.component()
    if not isinstance(stage, Coded):
        not_applicable("it has no codebook_size, to_indices and from_indices")
    count = min(stage.codebook_size, ALL_CODES)
    codes = torch.arange(count).view(1, 1, count)
    back = _quietly(stage.to_indices, _quietly(stage.from_indices, codes))
    wrong = (back != codes).sum()
    require(back.shape == codes.shape, f"{tuple(codes.shape)} codes come back as {tuple(back.shape)}")
    require(not bool(wrong), f"{int(wrong)} of {count} codes come back as others")
    z = case.inputs(stage)["z"]
    snapped = _quietly(stage.from_indices, _quietly(stage.to_indices, z))
    decode = cast(FirstStage, stage).decode
    require_close(
        {"image": _quietly(decode, snapped)}, {"image": _quietly(decode, z)}, ROUNDING, "taking the code itself"
    )


def _encoded(stage: FirstStage, inputs: Inputs, factor: float | None) -> Tensor:
    return _quietly(stage.encode, inputs["image"], None if factor is None else factor * inputs["noise"])


def _quietly(function: Any, *args: Any) -> Tensor:  # noqa: ANN401 - any method of a first stage
    with restored(0), torch.no_grad():
        result: Tensor = function(*args)
        return result


CHECKS: tuple[Check, ...] = (
    shapes_follow_its_factor,
    odd_sides_are_refused,
    scale_is_applied_once_and_undone,
    noise_draws_from_the_posterior,
    noise_of_another_shape_is_refused,
    codes_come_back,
)
