"""A layout as a picture for people: a coloured frame or dot per object, and its class beside it.

Names are placed one after the other, the smallest object's first. Of the places around an object each takes the one
that hides the least of other names and objects; where all are taken, the nearest free place of the picture and a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from ldmkit.conditioners.layout_tokens import Box, LayoutObject, Point, Region, as_object

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

Colour = tuple[int, int, int]
PAPER: Colour = (250, 250, 250)
INK: Colour = (25, 25, 25)


def draw_layout(
    objects: Iterable[LayoutObject | Sequence[Any]],
    names: Sequence[str] | None = None,
    size: tuple[int, int] = (512, 512),
) -> Image:
    """Draw a layout.

    Args:
        objects: boxes, points, or tuples ``(label, x0, y0, x1, y1)``, in [0, 1] of the picture.
        names: the name of each class; None writes class numbers.
        size: (width, height) of the picture in pixels.

    Returns:
        An RGB picture. A class has the same colour in every picture.

    Raises:
        ValueError: an object that is no object on the picture, or a class without a name.
    """
    from PIL import Image, ImageDraw, ImageFont

    checked = [item if isinstance(item, Point) else as_object(Box, item) for item in objects]
    for number, item in enumerate(checked):
        item.check(f"object {number} of class {item.label}")
    font = ImageFont.load_default(size=max(10.0, min(22.0, min(size) / 30)))
    line = max(2, min(size) // 200)
    frames = [_frame(item, size, line) for item in checked]
    order = sorted(range(len(checked)), key=lambda i: -_area(frames[i]))

    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image, "RGBA")
    for i in order:
        _draw_object(draw, checked[i], frames[i], line)
    texts = [_fitted(_text(item, names), font, size[0]) for item in checked]
    tags = _placed([_tag_size(text, font) for text in texts], frames, order[::-1], size)
    for i in order:
        _draw_line(draw, tags[i], frames[i], colour_of(checked[i].label))
    for i in order:
        _draw_tag(draw, tags[i], texts[i], colour_of(checked[i].label), font)
    return image


def colour_of(label: int) -> Colour:
    """The colour of a class: hue and lightness from a sequence whose values lie far apart, however many there are."""
    # The fractional parts of k / 1.3247 and k / 1.3247**2, with the plastic number, fill the square evenly.
    lightness = 0.38 + 0.36 * ((0.5 + 0.7548776662 * label) % 1)
    hue = math.tau * ((0.08 + 0.5698402910 * label) % 1)
    return _rgb(lightness, 0.16 * math.cos(hue), 0.16 * math.sin(hue))


def _rgb(lightness: float, a: float, b: float) -> Colour:
    """Oklab to sRGB, in which equal distances look equally far (Ottosson 2020)."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _byte(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _byte(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _byte(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def _byte(linear: float) -> int:
    linear = min(1.0, max(0.0, linear))
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


def _text(item: Box | Point, names: Sequence[str] | None) -> str:
    if names is None:
        name = str(item.label)
    elif 0 <= item.label < len(names):
        name = names[item.label]
    else:
        raise ValueError(f"class {item.label} has no name: {len(names)} names were given")
    return f"{name} ({', '.join(item.flags)})" if item.flags else name


def _fitted(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    """The text, or as much of its beginning as fits the picture."""
    if _tag_size(text, font)[0] <= width:
        return text
    shorter = (text[:length] + "..." for length in range(len(text) - 1, 0, -1))
    return next((cut for cut in shorter if _tag_size(cut, font)[0] <= width), text[:1])


def _tag_size(text: str, font: FreeTypeFont | ImageFont) -> tuple[float, float]:
    _, top, _, bottom = font.getbbox("Mg")
    left, _, right, _ = font.getbbox(text)
    return right - left + 8, bottom - top + 6


def _frame(item: Box | Point, size: tuple[int, int], line: int) -> Region:
    """The pixels that an object takes: a box's corners, a dot's bounds."""
    xs = [round(x * (size[0] - 1)) for x, _ in item.places]
    ys = [round(y * (size[1] - 1)) for _, y in item.places]
    reach = 2 * line if isinstance(item, Point) else 0
    return min(xs) - reach, min(ys) - reach, max(xs) + reach, max(ys) + reach


def _draw_object(draw: ImageDraw, item: Box | Point, frame: Region, line: int) -> None:
    colour = colour_of(item.label)
    if isinstance(item, Point):
        draw.ellipse(frame, fill=colour)
    else:
        draw.rectangle(frame, fill=(*colour, 36), outline=colour, width=line)


def _draw_tag(draw: ImageDraw, tag: Region, text: str, colour: Colour, font: FreeTypeFont | ImageFont) -> None:
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 130
    draw.rectangle(tag, fill=colour, outline=PAPER)
    left, _, _, _ = font.getbbox(text)
    _, top, _, _ = font.getbbox("Mg")
    draw.text((tag[0] + 4 - left, tag[1] + 3 - top), text, fill=INK if bright else PAPER, font=font)


def _draw_line(draw: ImageDraw, tag: Region, frame: Region, colour: Colour) -> None:
    """Join a tag that does not touch its object to the nearest point of it."""
    x = min(max((tag[0] + tag[2]) / 2, frame[0]), frame[2])
    y = min(max((tag[1] + tag[3]) / 2, frame[1]), frame[3])
    if _gap(tag, frame) > 2:
        draw.line([((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2), (x, y)], fill=colour, width=1)


def _placed(
    sizes: Sequence[tuple[float, float]], frames: Sequence[Region], order: Sequence[int], size: tuple[int, int]
) -> list[Region]:
    """Where each tag goes, deciding in the order given."""
    tags: dict[int, Region] = {}
    for i in order:
        others = list(tags.values())
        near = [_at(corner, sizes[i], size) for corner in _beside(sizes[i], frames[i])]
        best = min(range(len(near)), key=lambda k: _hidden(near[k], others, frames) + 0.02 * k)
        tags[i] = near[best]
        if any(_overlap(tags[i], other) for other in others):
            tags[i] = _elsewhere(sizes[i], frames, i, others, size)
    return [tags[i] for i in range(len(frames))]


def _beside(tag: tuple[float, float], frame: Region) -> list[tuple[float, float]]:
    """Top left corners of a tag that touches its object, the preferred first."""
    (w, h), (x0, y0, x1, y1) = tag, frame
    inside = [(x0, y0), (x0, y1 - h), (x1 - w, y0), (x1 - w, y1 - h)]
    above, below = y0 - h - 1, y1 + 1
    outside = [(x0, above), (x0, below), (x1 + 1, y0), (x0 - w - 1, y0), (x1 - w, above), (x1 - w, below)]
    return inside + outside


def _elsewhere(
    tag: tuple[float, float], frames: Sequence[Region], i: int, others: Sequence[Region], size: tuple[int, int]
) -> Region:
    step = tag[1] / 2
    columns, rows = int(size[0] // step), int(size[1] // step)
    spots = [_at((step * column, step * row), tag, size) for column, row in product(range(columns), range(rows))]
    spots.sort(key=lambda spot: _gap(spot, frames[i]))
    free = (spot for spot in spots if not any(_overlap(spot, other) for other in others))
    clear = next((spot for spot in free if _hidden(spot, others, frames) < 0.5), None)
    return clear or min(spots, key=lambda spot: _hidden(spot, others, frames))


def _at(corner: tuple[float, float], tag: tuple[float, float], size: tuple[int, int]) -> Region:
    """The tag at a corner, moved onto the picture."""
    x = max(0.0, min(corner[0], size[0] - 1 - tag[0]))
    y = max(0.0, min(corner[1], size[1] - 1 - tag[1]))
    return x, y, x + tag[0], y + tag[1]


def _hidden(tag: Region, others: Sequence[Region], frames: Sequence[Region]) -> float:
    """What a tag would hide: shares of other tags, which weigh most, and of objects."""
    of_tags = sum(_overlap(tag, other) / _area(other) for other in others)
    of_objects = sum(_overlap(tag, frame) / _area(frame) for frame in frames)
    return 20 * of_tags + of_objects


def _overlap(a: Region, b: Region) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _gap(a: Region, b: Region) -> float:
    across = max(0.0, a[0] - b[2], b[0] - a[2])
    down = max(0.0, a[1] - b[3], b[1] - a[3])
    return across + down


def _area(region: Region) -> float:
    return max(1.0, region[2] - region[0]) * max(1.0, region[3] - region[1])
