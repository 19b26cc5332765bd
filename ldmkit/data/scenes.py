"""Shape scenes: pictures of which everything is known, drawn from (seed, index).

    background, 1 to 3 objects (shape, colour, size, place)  ->  image, caption, boxes, label map, small image, mask

Places are whole multiples of 1/64 of the canvas and sizes whole percents, so that a scene is the same at any resolution
and every view of it is exact: :mod:`ldmkit.data.raster` draws in whole numbers. Boxes of a drawn scene are at least
``GAP`` of the canvas apart, so nothing is hidden.

The splits are disjoint by construction, since the scene itself says which one it belongs to: pairs of shape and colour
out of ``HELD_OUT`` occur in ``composition`` alone, three objects of which two share a colour in ``count`` (and in
``composition``), and of all others a hash decides between ``train``, ``val`` and ``test``.

Not here: textures, occlusion, and canvases that are not square.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Literal, get_args

from ldmkit.data.draws import Draws

RGB = tuple[int, int, int]
Split = Literal["train", "val", "test", "composition", "count"]
BoxTuple = tuple[int, float, float, float, float]

GRID = 64
UNIT = 100 * GRID
"""Lengths are whole multiples of 1 / UNIT of the canvas: places on the grid and sizes in percent alike."""
GAP = 0.07
COUNTS = (1, 2, 3)

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, RGB] = {
    "red": (230, 20, 40),
    "green": (20, 170, 50),
    "blue": (40, 110, 255),
    "yellow": (250, 230, 30),
    "magenta": (240, 50, 230),
    "cyan": (60, 240, 240),
    "orange": (250, 130, 10),
    "white": (250, 250, 250),
}
SIZES = {"small": 22, "large": 36}
"""The side of an object's box, in percent of the canvas."""
BACKGROUNDS: dict[str, RGB] = {"black": (12, 12, 12), "navy": (16, 20, 76), "brown": (80, 40, 16)}
HELD_OUT = (("circle", "blue"), ("square", "yellow"), ("triangle", "red"), ("cross", "cyan"))

CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
"""The 32 classes of boxes; in a label map class k is k + 1, and 0 is the background."""


@dataclass(frozen=True, order=True)
class Item:
    """One object of a scene.

    Args:
        y: its centre from above, in 1/64 of the canvas.
        x: its centre from the left, in 1/64 of the canvas.
        shape: out of ``SHAPES``.
        colour: out of ``COLOURS``.
        size: out of ``SIZES``.

    Raises:
        ValueError: an unknown word, or a box that leaves the canvas.
    """

    y: int
    x: int
    shape: str
    colour: str
    size: str

    def __post_init__(self) -> None:
        words = (("shape", SHAPES), ("colour", tuple(COLOURS)), ("size", tuple(SIZES)))
        for word, known in words:
            if getattr(self, word) not in known:
                raise ValueError(f"the {word} of an object is one of {', '.join(known)}, got {getattr(self, word)!r}")
        first, last = span(self.size)
        if not (first <= self.x <= last and first <= self.y <= last):
            raise ValueError(
                f"the centre of a {self.size} object lies in [{first}, {last}] of {GRID}, got x={self.x}, y={self.y}"
            )

    @property
    def label(self) -> int:
        """The index of its class in ``CLASSES``."""
        return SHAPES.index(self.shape) * len(COLOURS) + list(COLOURS).index(self.colour)

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Its box (x0, y0, x1, y1) in 1 / UNIT of the canvas."""
        x, y, r = self.x * UNIT // GRID, self.y * UNIT // GRID, radius(self.size)
        return x - r, y - r, x + r, y + r

    @property
    def box(self) -> BoxTuple:
        """(label, x0, y0, x1, y1) in [0, 1]: what the task ``layout-to-image`` takes."""
        x0, y0, x1, y1 = self.corners
        return self.label, x0 / UNIT, y0 / UNIT, x1 / UNIT, y1 / UNIT


@dataclass(frozen=True)
class Scene:
    """A background and the objects on it, from the top down; equal scenes give equal pictures.

    Args:
        background: out of ``BACKGROUNDS``.
        items: sorted; a later one covers an earlier one where they meet.

    Raises:
        ValueError: an unknown background, or objects that are not sorted.
    """

    background: str
    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"a background is one of {', '.join(BACKGROUNDS)}, got {self.background!r}")
        if list(self.items) != sorted(self.items):
            raise ValueError("the objects of a scene are sorted, so that equal scenes are equal: use sorted(items)")

    @property
    def boxes(self) -> list[BoxTuple]:
        """(label, x0, y0, x1, y1) of each object, in [0, 1]."""
        return [item.box for item in self.items]


def radius(size: str) -> int:
    """Half the side of an object's box, in 1 / UNIT of the canvas."""
    return SIZES[size] * UNIT // 200


def span(size: str) -> tuple[int, int]:
    """The first and the last place on the grid at which an object of a size lies on the canvas."""
    first = -(-radius(size) * GRID // UNIT)
    return first, GRID - first


def draw_scene(seed: int, index: int, split: Split = "train") -> Scene:
    """The scene of an index: a function of its arguments alone.

    Args:
        seed: of the whole data set, in [0, 2**64).
        index: from 0 on.
        split: which of the five.

    Raises:
        ValueError: an unknown split, a negative index or a seed out of range.
    """
    if split not in get_args(Split):
        raise ValueError(f"shape scenes have the splits {', '.join(get_args(Split))}, got {split!r}")
    if index < 0:
        raise ValueError(f"an index must be at least 0, got {index}")
    draws = Draws(seed, f"scene {split} {index}")
    return next(scene for scene in (_drawn(draws) for _ in itertools.count()) if split_of(scene) == split)


def split_of(scene: Scene) -> Split:
    """The split that a scene belongs to; no scene belongs to two."""
    if any((item.shape, item.colour) in HELD_OUT for item in scene.items):
        return "composition"
    if len(scene.items) == 3 and len({item.colour for item in scene.items}) < 3:
        return "count"
    words = [scene.background, *(f"{i.y} {i.x} {i.shape} {i.colour} {i.size}" for i in scene.items)]
    place = hashlib.blake2b("|".join(words).encode(), digest_size=8).digest()[0] % 10
    return "val" if place == 0 else "test" if place == 1 else "train"


def _drawn(draws: Draws) -> Scene:
    background = draws.choice(tuple(BACKGROUNDS))
    kinds = [
        (draws.choice(SHAPES), draws.choice(tuple(COLOURS)), draws.choice(tuple(SIZES)))
        for _ in range(draws.choice(COUNTS))
    ]
    while True:
        items = [Item(_place(draws, kind[2]), _place(draws, kind[2]), *kind) for kind in kinds]
        if all(_apart(one, other) for one, other in itertools.combinations(items, 2)):
            return Scene(background, tuple(sorted(items)))


def _place(draws: Draws, size: str) -> int:
    return draws.between(*span(size))


def _apart(one: Item, other: Item) -> bool:
    """Whether two boxes are GAP of the canvas apart, to a side or above one another."""
    a, b = one.corners, other.corners
    return max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3]) >= round(GAP * UNIT)
