"""The comparison of downsampling factors as a table and as a plot, both made from its record alone.

    python -m ldmkit.demo.factors_plot factors.png

Left over training compute, as figure 6 of the paper; right over sampling throughput, as figure 7.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

RECORD = Path(__file__).with_name("factors.json")
COLOURS: Mapping[int, str] = {1: "#0072b2", 2: "#009e73", 4: "#d55e00", 8: "#cc79a7"}
"""Told apart by the colour-blind: Okabe and Ito."""
GREY, BLACK = "#999999", "#222222"
WIDTH, HEIGHT = 470, 290
LEFT, TOP, ACROSS, DOWN = 76, 96, 576, 400
ZOOM = 2
Point = tuple[float, float]


def main() -> None:
    """Draw the plot of a record, without samples."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit.demo.factors_plot", description=__doc__)
    parser.add_argument("out", type=Path, help="the picture to write")
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    plot(json.loads(options.record.read_text())).save(options.out, optimize=True)


def table(record: Mapping[str, Any]) -> str:
    """One line per factor: what it cost, what its samples score, and the ceiling its first stage sets."""
    rows = ["| f | latent | parameters | samples of a step | TFLOP | as asked | residual | fd_cells | images / s |"]
    rows.append("| --- " * 9 + "|")
    for one in record["factors"]:
        last, ceiling = one["curve"][-1], one["first_stage"]["ceiling"]
        latent = " x ".join(map(str, one["latent"]))
        speed = next(row for row in one["sampling"] if row["steps"] == record["plan"]["shown_steps"])
        scores = " | ".join(f"{last[name]:.2f} ({ceiling[name]:.2f})" for name in ("as_asked", "residual", "fd_cells"))
        rows.append(
            f"| {one['factor']} | {latent} | {one['parameters']:,} | {one['batch']} | {one['training_tflop']:.1f} | "
            f"{scores} | {speed['images_per_core_second']:.1f} |"
        )
    real = " | ".join(f"{record['real'][name]:.2f}" for name in ("as_asked", "residual", "fd_cells"))
    return "\n".join([*rows, f"| real | | | | | {real} | |"])


@dataclass(frozen=True)
class Axis:
    """Numbers along a side of a panel.

    Args:
        low: the first, positive where ``log`` is set.
        high: the last, above it.
        log: equal factors are equally long; False: equal differences.
        name: what the numbers are.
    """

    low: float
    high: float
    log: bool
    name: str

    def share(self, value: float) -> float:
        """Where a number lies: 0 at the first, 1 at the last; numbers outside are drawn at the end they passed."""
        at = min(max(value, self.low), self.high)
        if self.log:
            return math.log(at / self.low) / math.log(self.high / self.low)
        return (at - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        """The numbers that are written: 1, 2 and 5 times powers of ten, or fifths of the range."""
        if not self.log:
            return [self.low + (self.high - self.low) * i / 5 for i in range(6)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        return [value for value in found if self.low <= value <= self.high]


@dataclass(frozen=True)
class Panel:
    """A coordinate system on the picture.

    Args:
        left: of its frame, in pixels.
        top: of its frame, in pixels.
        x: the axis below.
        y: the axis at the left.
    """

    left: int
    top: int
    x: Axis
    y: Axis

    def at(self, point: Point) -> Point:
        """Where a point lies on the picture."""
        return self.left + self.x.share(point[0]) * WIDTH, self.top + (1 - self.y.share(point[1])) * HEIGHT

    def frame(self, draw: ImageDraw.ImageDraw) -> None:
        """The frame, with a line and a number at each mark."""
        small, right, bottom = ImageFont.load_default(13), self.left + WIDTH, self.top + HEIGHT
        for value in self.x.marks():
            x = self.at((value, self.y.low))[0]
            draw.line([(x, self.top), (x, bottom)], fill="#eeeeee")
            draw.text((x, bottom + 6), f"{value:g}", fill=BLACK, font=small, anchor="ma")
        for value in self.y.marks():
            y = self.at((self.x.low, value))[1]
            draw.line([(self.left, y), (right, y)], fill="#eeeeee")
            draw.text((self.left - 8, y), f"{value:g}", fill=BLACK, font=small, anchor="rm")
        draw.rectangle([(self.left, self.top), (right, bottom)], outline=BLACK)
        draw.text((self.left, self.top - 6), self.y.name, fill=BLACK, font=ImageFont.load_default(14), anchor="ld")
        draw.text((self.left + WIDTH / 2, bottom + 26), self.x.name, fill=BLACK, font=small, anchor="ma")

    def line(self, draw: ImageDraw.ImageDraw, points: Sequence[Point], colour: str) -> None:
        """Points with a line through them."""
        places = [self.at(point) for point in points]
        draw.line(places, fill=colour, width=3, joint="curve")
        for x, y in places:
            draw.ellipse([(x - 5, y - 5), (x + 5, y + 5)], fill=colour, outline="white")

    def level(self, draw: ImageDraw.ImageDraw, value: float, colour: str) -> None:
        """A dashed line at a height."""
        y = self.at((self.x.low, value))[1]
        for x in range(self.left, self.left + WIDTH, 12):
            draw.line([(x, y), (min(x + 6, self.left + WIDTH), y)], fill=colour, width=2)


def plot(record: Mapping[str, Any], pictures: Mapping[int, Path] | None = None) -> Image.Image:
    """The plot of a record.

    Args:
        record: what ``ldmkit.demo.factors`` wrote.
        pictures: for each factor a picture of some of its samples in a row; those that are there are shown below.
    """
    shown = {f: Image.open(path).convert("RGB") for f, path in (pictures or {}).items() if path.exists()}
    row = max((ZOOM * picture.height + 6 for picture in shown.values()), default=0)
    sheet = Image.new("RGB", (LEFT + ACROSS + WIDTH + 30, TOP + 2 * DOWN - 10 + row * len(shown)), "white")
    draw = ImageDraw.Draw(sheet)
    _legend(draw, record)
    for panel, rows, key in _panels(record):
        panel.frame(draw)
        name = "as_asked" if panel.top == TOP else "fd_cells"
        panel.level(draw, record["real"][name], GREY)
        for one in record["factors"]:
            panel.level(draw, one["first_stage"]["ceiling"][name], COLOURS[one["factor"]])
        for one in record["factors"]:
            panel.line(draw, [(point[key], point[name]) for point in one[rows]], COLOURS[one["factor"]])
    for number, (factor, picture) in enumerate(shown.items()):
        top = TOP + 2 * DOWN - 20 + number * row
        draw.text((LEFT - 12, top + row / 2), f"f = {factor}", fill=COLOURS[factor], font=_font(15), anchor="rm")
        size = (picture.width * ZOOM, picture.height * ZOOM)
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (LEFT, top))
    return sheet


def _font(size: int) -> Any:  # noqa: ANN401 - one of two classes of Pillow's
    return ImageFont.load_default(size)


def _legend(draw: ImageDraw.ImageDraw, record: Mapping[str, Any]) -> None:
    """What the picture shows, and what its colours are."""
    plan = record["plan"]
    title = "Downsampling factors at equal parameters, steps and compute: single objects, 32 x 32 pixels, by class"
    draw.text((LEFT, 14), title, fill=BLACK, font=_font(16))
    x = LEFT
    for one in record["factors"]:
        factor = one["factor"]
        draw.line([(x, 52), (x + 26, 52)], fill=COLOURS[factor], width=3)
        draw.text((x + 32, 52), f"f = {factor}", fill=BLACK, font=_font(14), anchor="lm")
        x += 94
    note = f"dashed: reconstructions of the first stage; grey: real images. {plan['samples']} samples each"
    draw.text((x + 8, 52), note, fill=BLACK, font=_font(14), anchor="lm")


def _panels(record: Mapping[str, Any]) -> Iterable[tuple[Panel, str, str]]:
    """(panel, rows, what of a row is across): shares above, distances below; compute at the left, throughput right."""
    plan, factors = record["plan"], record["factors"]
    points = [row for one in factors for rows in ("curve", "sampling") for row in one[rows]]
    distances = [row["fd_cells"] for row in points] + [record["real"]["fd_cells"]]
    distances += [one["first_stage"]["ceiling"]["fd_cells"] for one in factors]
    steps = f"{plan['checkpoints'][0]} to {plan['checkpoints'][-1]} steps, DDIM {plan['shown_steps']}"
    ddim = ", ".join(map(str, plan["sampler_steps"]))
    sides = (
        (0, "curve", "tflop", f"training compute, TFLOP ({steps})"),
        (ACROSS, "sampling", "images_per_core_second", f"images per second of one core (DDIM {ddim}, right to left)"),
    )
    heights = (
        (TOP, Axis(0, 1, False, "as asked: share read as the class (higher is better)")),
        (TOP + DOWN, _around(distances, "fd_cells: Frechet distance (lower is better)")),
    )
    for offset, rows, key, name in sides:
        x = _around([row[key] for one in factors for row in one[rows]], name)
        for top, y in heights:
            yield Panel(LEFT + offset, top, x, y), rows, key


def _around(values: Sequence[float], name: str) -> Axis:
    """A logarithmic axis with room around its values."""
    positive = [max(value, 1e-6) for value in values]
    return Axis(min(positive) / 1.25, max(positive) * 1.25, True, name)


if __name__ == "__main__":
    main()
