"""Plots drawn with Pillow: curves, bars and histograms, each a picture of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 34, 48
COLOURS = ("#1f5fa8", "#c2571a", "#2f8a3b", "#8a3b8f", "#555555")
GREY, LIGHT = "#444444", "#dddddd"

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """One direction of a plot: data from ``low`` to ``high``, with round ticks."""

    low: float
    high: float
    label: str = ""

    def ticks(self) -> list[float]:
        """Four to nine multiples of 1, 2 or 5 times a power of ten."""
        raw = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
        return [n * step for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def axis(values: Sequence[float], label: str = "", margin: float = 0.06) -> Axis:
    """An axis that holds the finite ones of these values, with a margin; of some extent even for equal ones."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    extent = high - low or abs(high) or 1.0
    return Axis(low - margin * extent, high + margin * extent, label)


def curves(
    series: Mapping[str, Sequence[Point]],
    title: str,
    x_label: str,
    labels: Mapping[Point, str] | None = None,
    level: tuple[str, float] | None = None,
) -> Image.Image:
    """Lines through points; points that are not finite are left out.

    Args:
        series: name -> its points, in order.
        title: over the plot.
        x_label: below it.
        labels: words beside points.
        level: (name, y) of a dashed horizontal line, such as a floor.
    """
    points = [point for line in series.values() for point in line]
    heights = [y for _, y in points] + ([level[1]] if level else [])
    x, y = axis([x for x, _ in points], x_label), axis(heights)
    picture, draw, place = _framed(x, y, title)
    if level is not None and math.isfinite(level[1]):
        height = place(x.low, level[1])[1]
        for start in range(LEFT, WIDTH - RIGHT, 12):
            draw.line([(start, height), (start + 6, height)], fill=GREY)
        draw.text((WIDTH - RIGHT - 2, height - 2), level[0], fill=GREY, font=_font(), anchor="rb")
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        spots = [place(*point) for point in line if all(map(math.isfinite, point))]
        draw.line(spots, fill=colour, width=2)
        for point, (a, b) in zip([p for p in line if all(map(math.isfinite, p))], spots, strict=True):
            draw.ellipse([a - 3, b - 3, a + 3, b + 3], fill=colour)
            draw.text((a + 5, b - 4), (labels or {}).get(point, ""), fill=colour, font=_font(), anchor="lb")
        if len(series) > 1:
            corner = (WIDTH - RIGHT, TOP - 6 - 14 * (len(series) - 1 - number))
            draw.text(corner, name, fill=colour, font=_font(), anchor="rb")
    return picture


def histogram(values: Sequence[float], title: str, bins: int = 30) -> Image.Image:
    """How many of the finite values lie where, with a line at their mean."""
    finite = [value for value in values if math.isfinite(value)]
    x = axis(finite, "", 0.02)
    counts = [0] * bins
    for value in finite:
        counts[min(int((value - x.low) / (x.high - x.low) * bins), bins - 1)] += 1
    y = Axis(0, max(*counts, 1) * 1.08)
    picture, draw, place = _framed(x, y, title)
    width = (x.high - x.low) / bins
    for number, count in enumerate(counts):
        if count:
            corner, other = place(x.low + number * width, count), place(x.low + (number + 1) * width, 0)
            draw.rectangle([corner, (other[0] - 1, other[1])], fill=COLOURS[0])
    if finite:
        middle = sum(finite) / len(finite)
        draw.line([place(middle, y.low), place(middle, y.high)], fill=COLOURS[1], width=2)
    return picture


def bars(values: Mapping[str, float], title: str) -> Image.Image:
    """One bar per name, its value over it."""
    finite = [value for value in values.values() if math.isfinite(value)]
    y = axis([0.0, *finite], margin=0.12)
    picture, draw, place = _framed(Axis(0, len(values)), y, title, numbered=False)
    for number, (name, value) in enumerate(values.items()):
        left, right = place(number + 0.25, 0), place(number + 0.75, value if math.isfinite(value) else 0)
        top, bottom = sorted((left[1], right[1]))
        draw.rectangle([(left[0], top), (right[0], bottom)], fill=COLOURS[number % len(COLOURS)])
        middle = (left[0] + right[0]) / 2
        draw.text((middle, top - 2), f"{value:.4g}", fill=GREY, font=_font(), anchor="mb")
        draw.text((middle, HEIGHT - BOTTOM + 6), name, fill=GREY, font=_font(), anchor="mt")
    return picture


def tiled(pictures: Sequence[Image.Image]) -> Image.Image:
    """Plots on one picture, row by row, about as many rows as columns."""
    columns = math.ceil(len(pictures) ** 0.5)
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * WIDTH, rows * HEIGHT), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * WIDTH, number // columns * HEIGHT))
    return sheet


def _framed(
    x: Axis, y: Axis, title: str, numbered: bool = True
) -> tuple[Image.Image, ImageDraw.ImageDraw, Callable[[float, float], Point]]:
    """An empty plot, and where on it a point of the data lies."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)

    def place(a: float, b: float) -> Point:
        across, up = (a - x.low) / (x.high - x.low), (b - y.low) / (y.high - y.low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    for tick in y.ticks():
        height = place(x.low, tick)[1]
        draw.line([(LEFT, height), (WIDTH - RIGHT, height)], fill=LIGHT)
        draw.text((LEFT - 6, height), f"{tick:.4g}", fill=GREY, font=_font(), anchor="rm")
    for tick in x.ticks() if numbered else ():
        draw.text((place(tick, y.low)[0], HEIGHT - BOTTOM + 6), f"{tick:.4g}", fill=GREY, font=_font(), anchor="mt")
    draw.rectangle([LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM], outline=GREY)
    draw.text((LEFT, TOP - 8), title, fill="black", font=_font(14), anchor="lb")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8), x.label, fill="black", font=_font(), anchor="mb")
    return picture, draw, place


def _font(size: int = 12) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
