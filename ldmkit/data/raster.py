"""A scene in pixels: whole numbers from the geometry to the bytes, hence the same bytes everywhere.

    pixel = (background * (16 - n) + colour * n + 8) // 16,    n of its 4 x 4 points lie in the object

Lengths are in 1/6400 of a pixel, so that the grid, the sizes and the points of every resolution are whole numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmkit.data.scenes import BACKGROUNDS, COLOURS, GRID, UNIT, Item, Scene, radius

Integers = np.ndarray[Any, np.dtype[np.int64]]

SIDES = (32, 1024)
POINTS = 4
FULL = POINTS * POINTS


def render(scene: Scene, side: int) -> Tensor:
    """The image of a scene.

    Args:
        scene: what to draw.
        side: of the canvas in pixels, 32 to 1024.

    Returns:
        (3, side, side) uint8; ``/ 255`` is what the tasks take.

    Raises:
        ValueError: a side out of range.
    """
    check_side(side)
    canvas = np.empty((side, side, 3), dtype=np.int64)
    canvas[:] = BACKGROUNDS[scene.background]
    for item in scene.items:
        n, place = covered(item.shape, item.size, (item.y, item.x), side)
        colour = np.array(COLOURS[item.colour])
        canvas[place] = (canvas[place] * (FULL - n[..., None]) + colour * n[..., None] + FULL // 2) // FULL
    return torch.from_numpy(canvas.transpose(2, 0, 1).astype(np.uint8))


def label_map(scene: Scene, side: int) -> Tensor:
    """The class of every pixel: an object's, plus 1, where it covers at least half of the pixel, else 0.

    Args:
        scene: what to draw.
        side: of the map in pixels, 32 to 1024.

    Returns:
        (side, side) int64 in [0, 32].

    Raises:
        ValueError: a side out of range.
    """
    check_side(side)
    labels = np.zeros((side, side), dtype=np.int64)
    for item in scene.items:
        n, place = covered(item.shape, item.size, (item.y, item.x), side)
        labels[place] = np.where(2 * n >= FULL, item.label + 1, labels[place])
    return torch.from_numpy(labels)


def object_mask(item: Item, side: int, margin: int = 1) -> Tensor:
    """The mask that removes an object: every pixel its box touches, and a margin around it.

    Args:
        item: the object.
        side: of the canvas in pixels.
        margin: in pixels.

    Returns:
        (1, side, side) float32, 1 = regenerate.

    Raises:
        ValueError: a side out of range, or a negative margin.
    """
    check_side(side)
    if margin < 0:
        raise ValueError(f"the margin of a mask must be at least 0 pixels, got {margin}")
    x0, y0, x1, y1 = item.corners
    mask = torch.zeros(1, side, side)
    rows = slice(max(y0 * side // UNIT - margin, 0), -(-y1 * side // UNIT) + margin)
    mask[:, rows, max(x0 * side // UNIT - margin, 0) : -(-x1 * side // UNIT) + margin] = 1
    return mask


def reduced(image: Tensor, factor: int) -> Tensor:
    """The mean of each block of pixels, rounded to bytes: the small image of a scene.

    Args:
        image: (C, H, W) uint8, H and W multiples of the factor.
        factor: f, at least 1.

    Returns:
        (C, H / f, W / f) uint8.

    Raises:
        TypeError: an image that is not uint8.
        ValueError: a size that is no multiple of the factor.
    """
    if image.dtype != torch.uint8:
        raise TypeError(
            f"reduced takes bytes, of which it is exact, got {image.dtype}: use the degradation Box instead"
        )
    C, H, W = image.shape
    if factor < 1 or H % factor or W % factor:
        raise ValueError(f"an image of {H} x {W} has no whole blocks of {factor} x {factor} pixels")
    blocks = image.long().reshape(C, H // factor, factor, W // factor, factor).sum((2, 4))
    return ((blocks + factor**2 // 2) // factor**2).to(torch.uint8)


def covered(shape: str, size: str, place: tuple[int, int], side: int) -> tuple[Integers, tuple[slice, slice]]:
    """How many of 16 points of each pixel lie in an object, (h, w) in [0, 16], and where: (rows, columns).

    Args:
        shape: out of ``SHAPES``.
        size: out of ``SIZES``.
        place: (y, x) of its centre, in 1/64 of the canvas.
        side: of the canvas in pixels.
    """
    (top, v), (left, u) = divmod(place[0] * side, GRID), divmod(place[1] * side, GRID)
    n, up, back = _counts(shape, size, side, v, u)
    y, x = top - up, left - back
    return n, (slice(y, y + n.shape[0]), slice(x, x + n.shape[1]))


def check_side(side: int) -> None:
    """Refuse a side that scenes are not drawn at.

    Raises:
        ValueError: it is out of range.
    """
    if not SIDES[0] <= side <= SIDES[1]:
        raise ValueError(f"scenes are drawn at {SIDES[0]} to {SIDES[1]} pixels a side, got {side}")


@lru_cache(maxsize=4096)
def _counts(shape: str, size: str, side: int, v: int, u: int) -> tuple[Integers, int, int]:
    """(counts, rows above, columns left of the centre's pixel) of an object u / 64 pixels into it, v / 64 down."""
    r = radius(size) * side
    y, up = _points(r, v)
    x, back = _points(r, u)
    inside = _inside(shape, x[None, :], y[:, None], r)
    n = inside.reshape(len(y) // POINTS, POINTS, len(x) // POINTS, POINTS).sum((1, 3), dtype=np.int64)
    n.setflags(write=False)
    return n, up, back


def _points(r: int, offset: int) -> tuple[Integers, int]:
    """Coordinates of the points of the pixels that [-r, r] around the centre touches, and how many of them precede."""
    centre = offset * UNIT // GRID
    first, end = (centre - r) // UNIT, -((-centre - r) // UNIT)
    steps = np.arange(POINTS * first, POINTS * end, dtype=np.int64)
    return (2 * steps + 1) * (UNIT // POINTS // 2) - centre, -first


def _inside(shape: str, x: Integers, y: Integers, r: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    square = np.maximum(abs(x), abs(y)) <= r
    if shape == "circle":
        return np.asarray(x * x + y * y <= r * r)
    if shape == "triangle":
        return np.asarray(square & (2 * abs(x) <= y + r))
    if shape == "cross":
        return np.asarray(square & (3 * np.minimum(abs(x), abs(y)) <= r))
    return np.asarray(square)
