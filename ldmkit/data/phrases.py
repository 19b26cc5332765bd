"""Scenes in words: one canonical caption, and a pool of others that say the same.

A caption says of each object its size, colour, shape and in which ninth of the canvas its centre lies, and the
background: two scenes have the same canonical caption exactly if all of that agrees.
"""

from __future__ import annotations

from ldmkit.data.draws import Draws
from ldmkit.data.scenes import GRID, Item, Scene

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
OTHER_SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
FRAMES = (
    "{objects} on a {background} background",
    "a {background} picture with {objects}",
    "on a {background} background, {objects}",
    "a picture of {objects} with {background} behind",
)
NOTHING = "nothing"


def caption(scene: Scene) -> str:
    """The canonical caption, its objects in reading order of the ninths and then by their words."""
    told = sorted((_ninth(item), _phrase(item, item.size, "at")) for item in scene.items)
    objects = " and ".join(phrase for _, phrase in told) or NOTHING
    return FRAMES[0].format(objects=objects, background=scene.background)


def paraphrase(scene: Scene, seed: int) -> str:
    """A caption of the pool: other frames, words for sizes and orders of the objects, by the seed.

    Raises:
        ValueError: a seed outside [0, 2**64).
    """
    draws = Draws(seed, "paraphrase")
    frame, link, at = draws.choice(FRAMES), draws.choice((" and ", ", ", " and also ")), draws.choice(("at", "in"))
    items = [scene.items[place] for place in draws.order(len(scene.items))]
    objects = link.join(_phrase(item, draws.choice(OTHER_SIZES[item.size]), at) for item in items)
    return frame.format(objects=objects or NOTHING, background=scene.background)


def _ninth(item: Item) -> tuple[int, int]:
    return item.y * 3 // GRID, item.x * 3 // GRID


def _phrase(item: Item, size: str, at: str) -> str:
    row, column = _ninth(item)
    return f"a {size} {item.colour} {item.shape} {at} the {ROWS[row]} {COLUMNS[column]}"
