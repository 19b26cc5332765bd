"""What an evaluation found, with the protocol that it followed: a JSON file and plots."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ldmkit.evaluation.pairs import Summary
from ldmkit.evaluation.plots import Point, bars, curves, histogram, tiled
from ldmkit.evaluation.throughput import Throughput
from ldmkit.training.log import write_sheet
from ldmkit.training.parallel import rank
from ldmkit.weights.atomic import write_atomically

PACKAGES = ("ldmkit", "torch", "torchmetrics", "numpy", "pillow")


@dataclass(frozen=True, eq=False)
class Report:
    """The result of :func:`ldmkit.evaluation.evaluate`.

    Args:
        figures: of the distribution, by name.
        floor: the same figures of held-out real images, as many.
        pairs: of each image against its truth.
        notes: what must be known beside the figures.
        protocol: what was compared with what, and how.
        speed: where it was timed.
        shown: (B, 3, H, W) in [0, 1], the first images.
    """

    figures: Mapping[str, float]
    floor: Mapping[str, float]
    pairs: Mapping[str, Summary]
    notes: Sequence[str]
    protocol: Mapping[str, Any]
    speed: Throughput | None
    shown: Tensor

    def facts(self) -> dict[str, Any]:
        """Everything but the images, as plain data."""
        found = {
            "figures": dict(self.figures),
            "floor": dict(self.floor),
            "pairs": {name: one.facts() for name, one in self.pairs.items()},
            "throughput": None if self.speed is None else asdict(self.speed),
            "notes": list(self.notes),
            "protocol": dict(self.protocol),
        }
        return {name: value for name, value in found.items() if value or name == "protocol"}

    def values(self) -> dict[str, float]:
        """Every figure and every mean, by name; deviations left out."""
        own = {name: value for name, value in self.figures.items() if not name.endswith("_std")}
        return own | {name: one.mean for name, one in self.pairs.items()}

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``report.json``, ``samples.png``, and ``figures.png`` and ``pairs.png`` where there are any.

        The first process writes; each file appears whole or not at all.
        """
        if rank():
            return
        out = _made(folder)
        if self.figures:
            _save(tiled(self._bars()), out / "figures.png")
        if self.pairs:
            drawn = [histogram(one.values, f"{name}: mean {one.mean:.4g}") for name, one in self.pairs.items()]
            _save(tiled(drawn), out / "pairs.png")
        if len(self.shown):
            write_sheet(self.shown, out / "samples.png")
        _write_json(self.facts(), out / "report.json")

    def _bars(self) -> list[Image.Image]:
        drawn = [name for name in self.figures if not name.endswith("_std")]
        floors = [{"floor": self.floor[name]} if name in self.floor else {} for name in drawn]
        return [bars({"made": self.figures[name], **floor}, name) for name, floor in zip(drawn, floors, strict=True)]

    def __str__(self) -> str:
        rows = [("", "value", "floor")] if self.figures else []
        rows += [(name, f"{value:.4g}", _shown(self.floor.get(name))) for name, value in self.figures.items()]
        for name, one in self.pairs.items():
            rows.append((name, f"{one.mean:.4g}", f"+- {one.standard_error:.2g}"))
        if self.speed is not None:
            rows.append(("samples / s", f"{self.speed.samples_per_second:.4g}", self.speed.device))
        wide = max((len(name) for name, _, _ in rows), default=0)
        lines = [f"{name:{wide}}  {value:>9}  {other:>9}".rstrip() for name, value, other in rows]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, eq=False)
class Sweep:
    """Reports of one choice after another.

    Args:
        name: what was varied.
        values: of it, one per report.
        reports: in the same order.
    """

    name: str
    values: tuple[float, ...]
    reports: tuple[Report, ...]

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``report.json``, ``sweep.png`` with a curve per figure, ``tradeoff.png``, and a sheet per value.

        The first process writes. ``tradeoff.png`` shows precision and recall over the Fréchet distance, where these
        were measured.
        """
        if rank():
            return
        out = _made(folder)
        _save(tiled([self._curve(name) for name in self.reports[0].values()]), out / "sweep.png")
        if (tradeoff := self._tradeoff()) is not None:
            _save(tradeoff, out / "tradeoff.png")
        for value, report in zip(self.values, self.reports, strict=True):
            if len(report.shown):
                write_sheet(report.shown, out / f"samples-{value:g}.png")
        reports = [report.facts() for report in self.reports]
        _write_json({"parameter": self.name, "values": list(self.values), "reports": reports}, out / "report.json")

    def _curve(self, name: str) -> Image.Image:
        points = [(value, report.values()[name]) for value, report in zip(self.values, self.reports, strict=True)]
        floor = self.reports[0].floor.get(name)
        return curves({name: points}, name, self.name, level=None if floor is None else ("floor", floor))

    def _tradeoff(self) -> Image.Image | None:
        names = self.reports[0].figures
        found = [
            next((name for name in names if name == own or name.startswith(f"{word}_")), None)
            for word, own in (("fd", "fid"), ("precision", "precision"), ("recall", "recall"))
        ]
        distance, *shares = found
        if distance is None or None in shares:
            return None
        series = {name: [(one.figures[distance], one.figures[name]) for one in self.reports] for name in shares if name}
        words: dict[Point, str] = {}
        for points in series.values():
            words |= {point: f"{value:g}" for point, value in zip(points, self.values, strict=True)}
        return curves(series, f"by {self.name}", distance, words)


def surroundings() -> dict[str, Any]:
    """Versions and date, for the protocol."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return {"versions": found, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def _made(folder: str | os.PathLike[str]) -> Path:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _write_json(facts: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(_plain(facts), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


def _plain(value: object) -> object:
    """JSON has no numbers that are not finite; words stand for them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _save(picture: Image.Image, path: Path) -> None:
    write_atomically(path, lambda partial: picture.save(partial, format="PNG"))


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
