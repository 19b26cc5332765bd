"""Masks to train inpainting with: strokes, boxes, frames and mixtures of them, drawn from a seed.

    ((H, W), seed) -> mask (1, H, W) of 0 and 1,    1 = regenerate

Lengths are parts of the image's shorter side, so that a mask looks alike at every resolution; the defaults are the
published numbers for 256 x 256 pixels. The covered part of a mask lies in ``coverage``, without exception: a shape
that would cover too much is not taken, shapes are added until enough is covered, and where neither leads there the last
one is cut.

Source: Suvorov et al., Resolution-robust Large Mask Inpainting, arXiv 2109.07161, section 2.3 and supplement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ldmkit.data.draws import Draws

Size = tuple[int, int]
Bounds = tuple[float, float]
Whole = tuple[int, int]
Marks = np.ndarray[Any, np.dtype[np.bool_]]

TRIES = 64
SIDE = 256


class MaskMaker(Protocol):
    """Draws masks."""

    def __call__(self, size: Size, seed: int) -> Tensor:
        """The mask (1, H, W) of a size (H, W) and a seed in [0, 2**64): float32, 1 = regenerate."""


@dataclass(frozen=True)
class Strokes:
    """Polygonal strokes of a wide brush.

    Args:
        times: how many strokes, first and last number.
        corners: how many segments in a stroke.
        length: of a segment, as parts of the shorter side.
        width: of the brush, as parts of the shorter side.
        bend: how far each segment's direction may turn, in radians.
        coverage: the least and the largest covered part of the image.

    Raises:
        ValueError: bounds out of order or out of range.
    """

    times: Whole = (1, 5)
    corners: Whole = (1, 5)
    length: Bounds = (10 / SIDE, 210 / SIDE)
    width: Bounds = (5 / SIDE, 105 / SIDE)
    bend: float = 4.0
    coverage: Bounds = (0.05, 0.5)

    def __post_init__(self) -> None:
        _check_bounds("Strokes", self.coverage)
        _check_whole("Strokes", "times", self.times)
        _check_whole("Strokes", "corners", self.corners)
        _check_lengths("Strokes", self.length, self.width)

    def __call__(self, size: Size, seed: int) -> Tensor:
        """A mask (1, H, W) of strokes."""
        draws = Draws(seed, "strokes")
        return _grown(self._strokes(size, draws), draws.between(*self.times), size, self.coverage, "Strokes")

    def _strokes(self, size: Size, draws: Draws) -> Iterator[Marks]:
        H, W = size
        side = min(H, W)
        while True:
            y, x, angle = int(draws.uniform() * H), int(draws.uniform() * W), draws.uniform(0, 2 * math.pi)
            width = max(round(draws.uniform(*self.width) * side), 1)
            stroke = np.zeros(size, dtype=np.bool_)
            for segment in range(draws.between(*self.corners)):
                # Every other segment runs back, so that strokes fill places and do not only cross them.
                angle += (math.pi if segment % 2 else 0.0) + draws.uniform(-0.5, 0.5) * self.bend
                length = draws.uniform(*self.length) * side
                end_y = min(max(round(y + length * math.sin(angle)), 0), H - 1)
                end_x = min(max(round(x + length * math.cos(angle)), 0), W - 1)
                _add_segment(stroke, (y, x), (end_y, end_x), width)
                y, x = end_y, end_x
            yield stroke


@dataclass(frozen=True)
class Boxes:
    """Upright boxes that may overlap.

    Args:
        times: how many boxes, first and last number.
        side: of a box, as parts of the image's shorter side.
        margin: between a box and the border, as a part of the shorter side.
        coverage: the least and the largest covered part of the image.

    Raises:
        ValueError: bounds out of order or out of range.
    """

    times: Whole = (1, 4)
    side: Bounds = (30 / SIDE, 150 / SIDE)
    margin: float = 10 / SIDE
    coverage: Bounds = (0.05, 0.5)

    def __post_init__(self) -> None:
        _check_bounds("Boxes", self.coverage)
        _check_whole("Boxes", "times", self.times)
        _check_lengths("Boxes", self.side)
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"the margin of Boxes is a part of the shorter side, in [0, 0.5), got {self.margin}")

    def __call__(self, size: Size, seed: int) -> Tensor:
        """A mask (1, H, W) of boxes."""
        draws = Draws(seed, "boxes")
        return _grown(self._boxes(size, draws), draws.between(*self.times), size, self.coverage, "Boxes")

    def _boxes(self, size: Size, draws: Draws) -> Iterator[Marks]:
        shorter = min(size)
        margin = round(self.margin * shorter)
        while True:
            box = np.zeros(size, dtype=np.bool_)
            rows, columns = (self._range(draws, end - 2 * margin, shorter, margin) for end in size)
            box[rows, columns] = True
            yield box

    def _range(self, draws: Draws, room: int, shorter: int, margin: int) -> slice:
        length = min(max(round(draws.uniform(*self.side) * shorter), 1), max(room, 1))
        first = margin + int(draws.uniform() * (max(room - length, 0) + 1))
        return slice(first, first + length)


@dataclass(frozen=True)
class Frames:
    """Everything but a rectangle: what outpainting makes.

    Args:
        padding: of a side that is made anew, as parts of the height or width.
        chance: of each side to be made anew; one is in any case.
        coverage: the least and the largest covered part of the image.

    Raises:
        ValueError: bounds out of order or out of range.
    """

    padding: Bounds = (0.04, 0.5)
    chance: float = 0.5
    coverage: Bounds = (0.05, 0.6)

    def __post_init__(self) -> None:
        _check_bounds("Frames", self.coverage)
        _check_lengths("Frames", self.padding)
        if not 0 <= self.chance <= 1:
            raise ValueError(f"the chance of a side of Frames lies in [0, 1], got {self.chance}")

    def __call__(self, size: Size, seed: int) -> Tensor:
        """A mask (1, H, W) that leaves one rectangle.

        Raises:
            ValueError: no frame of the size covers a part within the bounds.
        """
        least, most = _counts(size, self.coverage, "Frames")
        draws = Draws(seed, "frames")
        for _ in range(TRIES):
            known = self._known(size, draws)
            if least <= size[0] * size[1] - known.sum() <= most:
                return torch.from_numpy(~known).float()[None]
        return torch.from_numpy(_one_side(size, least, most, draws)).float()[None]

    def _known(self, size: Size, draws: Draws) -> Marks:
        H, W = size
        sides = [draws.chance(self.chance) for _ in range(4)]
        sides[draws.below(4)] = True
        top, bottom, left, right = (
            round(draws.uniform(*self.padding) * (H if i < 2 else W)) if side else 0 for i, side in enumerate(sides)
        )
        known = np.zeros(size, dtype=np.bool_)
        known[top : max(H - bottom, top), left : max(W - right, left)] = True
        return known


@dataclass(frozen=True)
class Mixed:
    """One of several makers each time.

    Args:
        makers: what draws.
        weights: how often each is taken, in proportion.

    Raises:
        ValueError: no maker, another number of weights, or weights that are not above 0.
    """

    makers: tuple[MaskMaker, ...] = field(default_factory=lambda: (Strokes(), Boxes()))
    weights: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.makers or len(self.makers) != len(self.weights) or min(self.weights) <= 0:
            raise ValueError(
                f"Mixed needs one weight above 0 for each maker, got {len(self.makers)} makers and {self.weights}"
            )

    def __call__(self, size: Size, seed: int) -> Tensor:
        """A mask (1, H, W) of one of the makers."""
        point, total = Draws(seed, "mixed").uniform(0, sum(self.weights)), 0.0
        for maker, weight in zip(self.makers, self.weights, strict=True):
            total += weight
            if point < total:
                return maker(size, seed)
        return self.makers[-1](size, seed)


def covered_part(mask: Tensor) -> Tensor:
    """The part of each mask (B, 1, H, W) that is 1: (B,) in [0, 1]."""
    return mask.flatten(1).double().mean(1)


def _grown(shapes: Iterator[Marks], times: int, size: Size, coverage: Bounds, name: str) -> Tensor:
    """Shapes laid on each other, ``times`` of them and more where they do not cover enough; within the bounds."""
    least, most = _counts(size, coverage, name)
    mask = np.zeros(size, dtype=np.bool_)
    taken = 0
    for _ in range(TRIES):
        grown = mask | next(shapes)
        if grown.sum() > most:
            continue
        mask, taken = grown, taken + 1
        if taken >= times and mask.sum() >= least:
            break
    while (missing := least - int(mask.sum())) > 0:
        new = np.flatnonzero(next(shapes) & ~mask)
        mask.flat[new[:missing] if len(new) else np.flatnonzero(~mask)[:missing]] = True
    return torch.from_numpy(mask).float()[None]


def _one_side(size: Size, least: int, most: int, draws: Draws) -> Marks:
    """A strip along one side that covers a number of pixels within the bounds."""
    fitting = [
        (axis, strip)
        for axis, (length, across) in enumerate((size, size[::-1]))
        for strip in range(1, length + 1)
        if least <= strip * across <= most
    ]
    if not fitting:
        raise ValueError(
            f"no frame of {size[0]} x {size[1]} pixels covers {least} to {most} of them: widen coverage= of Frames"
        )
    axis, strip = draws.choice(fitting)
    mask = np.zeros(size, dtype=np.bool_)
    mask[(slice(strip), slice(None)) if axis == 0 else (slice(None), slice(strip))] = True
    return np.flip(mask, axis).copy() if draws.chance(0.5) else mask


def _add_segment(stroke: Marks, a: Whole, b: Whole, width: int) -> None:
    """Mark the pixels within half a width of a segment, in whole numbers; in place."""
    reach = width // 2 + 1
    top, left = (max(min(a[i], b[i]) - reach, 0) for i in (0, 1))
    bottom, right = (max(a[i], b[i]) + reach + 1 for i in (0, 1))
    part = stroke[top:bottom, left:right]
    y = np.arange(top, top + part.shape[0], dtype=np.int64)[:, None] - a[0]
    x = np.arange(left, left + part.shape[1], dtype=np.int64)[None, :] - a[1]
    dy, dx = b[0] - a[0], b[1] - a[1]
    along, long = y * dy + x * dx, dy * dy + dx * dx
    near_line = (along >= 0) & (along <= long) & (4 * (x * dy - y * dx) ** 2 <= width * width * long)
    near_ends = 4 * np.minimum(y * y + x * x, (y - dy) ** 2 + (x - dx) ** 2) <= width * width
    part |= (near_line & (long > 0)) | near_ends


def _counts(size: Size, coverage: Bounds, name: str) -> Whole:
    """The least and the largest number of covered pixels."""
    H, W = size
    if H < 1 or W < 1:
        raise ValueError(f"a mask has at least one pixel, got {H} x {W}")
    least, most = math.ceil(coverage[0] * H * W), math.floor(coverage[1] * H * W)
    if least > most:
        raise ValueError(f"no number of pixels of {H} x {W} is a part in {coverage}: widen coverage= of {name}")
    return least, most


def _check_bounds(name: str, coverage: Bounds) -> None:
    if not 0 <= coverage[0] <= coverage[1] <= 1:
        raise ValueError(f"coverage of {name} must be (least, largest) in [0, 1], got {coverage}")


def _check_whole(name: str, field: str, numbers: Whole) -> None:
    if not 1 <= numbers[0] <= numbers[1]:
        raise ValueError(f"{field} of {name} must be (first, last) from 1 on, got {numbers}")


def _check_lengths(name: str, *lengths: Bounds) -> None:
    for low, high in lengths:
        if not 0 < low <= high <= 1:
            raise ValueError(f"lengths of {name} are (least, largest) parts in (0, 1], got {(low, high)}")
