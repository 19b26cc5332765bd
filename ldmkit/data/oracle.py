"""Which scene is this? Read from the pixels alone, without a network.

The background is the one nearest to the median colour. What differs from it falls into connected parts, and for each
part the shape, size, colour and place are those with which the drawn object differs least from the pixels:

    argmin sum |P - a d|^2 = argmin |d|^2 sum a^2 - 2 d . sum a P,    P = image - background, d = colour - background

with a the covered fraction of each pixel. On a rendered scene the minimum is the scene itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmkit.data.raster import FULL, check_side, covered, render
from ldmkit.data.scenes import BACKGROUNDS, COLOURS, GRID, RGB, SHAPES, SIZES, Item, Scene, span

Floats = np.ndarray[Any, np.dtype[np.float64]]
Marks = np.ndarray[Any, np.dtype[np.bool_]]
Place = tuple[int, int]

NOTICED = 73.0
"""Half the smallest distance of a colour from a background, in bytes: what differs more belongs to an object."""
SMALLEST = 0.0066
"""The part of the canvas below which nothing is an object: a quarter of a small cross."""
MOST = 8


@dataclass(frozen=True)
class Reading:
    """What an image shows.

    Args:
        scene: the nearest scene that was found.
        residual: mean absolute difference between the image and that scene's, in bytes: 0 for a rendered scene.
    """

    scene: Scene
    residual: float


def read_scene(image: Tensor) -> Reading:
    """Read a scene back.

    Args:
        image: (3, side, side), uint8, or floating point in [0, 1], which is clamped; side 32 to 1024.

    Returns:
        The scene and how far the image is from it; an image of anything else gives some scene and a large residual.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    pixels = _bytes(image)
    side = pixels.shape[0]
    background = _nearest(np.median(pixels, axis=(0, 1)), BACKGROUNDS)
    P = pixels - np.array(BACKGROUNDS[background], dtype=np.float64)
    marked = (P**2).sum(2) > NOTICED**2
    parts = sorted(connected(marked), key=len, reverse=True)
    found = [
        _fitted(np.where(_others(marked, part)[..., None], 0, P), part, background)
        for part in parts[:MOST]
        if len(part) >= SMALLEST * side**2
    ]
    scene = Scene(background, tuple(sorted(found)))
    drawn = render(scene, side).permute(1, 2, 0).numpy()
    return Reading(scene, float(np.abs(drawn - pixels).mean()))


def connected(marked: Marks) -> list[list[Place]]:
    """The parts of a mask (H, W) that hang together by sides, each a list of (row, column)."""
    runs: list[tuple[int, int, int]] = []
    root: list[int] = []

    def top(run: int) -> int:
        while root[run] != run:
            run = root[run]
        return run

    above: list[int] = []
    for y, row in enumerate(marked):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]]))).tolist()
        here = list(range(len(runs), len(runs) + len(edges) // 2))
        runs += [(y, start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)]
        root += here
        for run in here:
            for other in above:
                if runs[other][1] < runs[run][2] and runs[run][1] < runs[other][2]:
                    root[top(other)] = top(run)
        above = here
    parts: dict[int, list[Place]] = {}
    for run, (y, start, end) in enumerate(runs):
        parts.setdefault(top(run), []).extend((y, x) for x in range(start, end))
    return list(parts.values())


def _bytes(image: Tensor) -> Floats:
    """(side, side, 3), whole numbers in [0, 255]."""
    if image.ndim != 3 or image.shape[0] != 3 or image.shape[1] != image.shape[2]:
        raise ValueError(f"a scene is read from (3, side, side), got shape {tuple(image.shape)}")
    check_side(image.shape[1])
    if not image.isfinite().all():
        raise ValueError("a scene is read from finite values, got NaN or infinity: look at the sampler's last step")
    scaled = image if image.dtype == torch.uint8 else (image.detach().double().clamp(0, 1) * 255).round()
    return np.asarray(scaled.permute(1, 2, 0).cpu().numpy(), dtype=np.float64)


def _nearest(colour: Floats, among: dict[str, RGB]) -> str:
    return min(among, key=lambda name: float(((colour - np.array(among[name])) ** 2).sum()))


def _others(marked: Marks, part: list[Place]) -> Marks:
    """What belongs to another part."""
    rest = marked.copy()
    rest[tuple(np.array(part).T)] = False
    return rest


def _fitted(P: Floats, part: list[Place], background: str) -> Item:
    """The object that explains a part best."""
    side = P.shape[0]
    low, high = np.min(part, axis=0), np.max(part, axis=0)
    y, x = (round(float(middle)) for middle in (low + high + 1) * GRID / (2 * side))
    colours = np.array(list(COLOURS.values()), dtype=np.float64) - np.array(BACKGROUNDS[background])
    fits = [_climbed(P, colours, shape, size, (y, x)) for shape in SHAPES for size in SIZES]
    return min(fits, key=lambda fit: fit[0])[1]


def _climbed(P: Floats, colours: Floats, shape: str, size: str, start: Place) -> tuple[float, Item]:
    """From a place to the best one around it until there is no better: (cost, object)."""
    first, last = span(size)
    seen: dict[Place, tuple[float, int]] = {}

    def cost(place: Place) -> float:
        if place not in seen:
            seen[place] = _cost(P, colours, shape, size, place)
        return seen[place][0]

    here = min(max(start[0], first), last), min(max(start[1], first), last)
    while True:
        rows, columns = ((max(at - 1, first), min(at + 1, last)) for at in here)
        around = [(y, x) for y in range(rows[0], rows[1] + 1) for x in range(columns[0], columns[1] + 1)]
        best = min([here, *around], key=cost)
        if best == here:
            value, colour = seen[here]
            return value, Item(*here, shape, list(COLOURS)[colour], size)
        here = best


def _cost(P: Floats, colours: Floats, shape: str, size: str, place: Place) -> tuple[float, int]:
    """(cost of the best colour, its index) of an object at a place."""
    n, where = covered(shape, size, place, P.shape[0])
    a = n.reshape(-1) / FULL
    costs = (colours**2).sum(1) * (a @ a) - 2 * colours @ (a @ P[where].reshape(-1, 3))
    best = int(costs.argmin())
    return float(costs[best]), best
