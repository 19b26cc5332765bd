"""Pictures with boxes: COCO's JSON and OpenImages' tables, as layouts.

    annotations of a picture  ->  {"target": ..., "boxes": [(label, x0, y0, x1, y1, flags), ...]}, in [0, 1]

Classes are numbered anew from 0, and the names go with the data. What the filter leaves out is counted in ``left_out``.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmkit.data.folders import Where, list_images
from ldmkit.data.rows import Records

LayoutBox = tuple[int, float, float, float, float, tuple[str, ...]]
FLAGS = {"IsGroupOf": "group", "IsOccluded": "occluded", "IsDepiction": "depiction", "IsInside": "inside"}
CORNERS = ("XMin", "YMin", "XMax", "YMax")
SLACK = 0.02  # of the picture; published boxes stick out by a rounded pixel, and never by more


@dataclass(frozen=True)
class BoxFilter:
    """Which objects and pictures are trained on.

    Args:
        area: a box is kept if it covers more than this part of the picture, in [0, 1).
        least: a picture is kept if it has at least so many boxes.
        most: and at most so many: as many as the layout has slots.

    Raises:
        ValueError: numbers out of range.

    Source: ``most`` is arXiv 2112.10752, appendix E.2.1; ``least`` and the areas, 1e-4 for OpenImages and 1e-5 for
        COCO, are those of the data code that the published layout models were trained with.
    """

    area: float = 1e-5
    least: int = 2
    most: int = 30

    def __post_init__(self) -> None:
        if not (0 <= self.area < 1 and 0 <= self.least <= self.most):
            raise ValueError(f"a filter needs 0 <= area < 1 and 0 <= least <= most, got {self}")

    def kept(self, boxes: Mapping[str, Sequence[LayoutBox]], counts: Counter[str]) -> dict[str, list[LayoutBox]]:
        """The boxes by picture that pass; what does not is added to the counts."""
        result = {}
        for name, layout in boxes.items():
            large = [box for box in layout if (box[3] - box[1]) * (box[4] - box[2]) > self.area]
            counts[f"boxes of an area up to {self.area:g}"] += len(layout) - len(large)
            if self.least <= len(large) <= self.most:
                result[name] = large
            else:
                counts[f"pictures without {self.least} to {self.most} boxes"] += 1
        return result


def coco_boxes(
    annotations: Where,
    images: Where,
    keep: BoxFilter = BoxFilter(),
    categories: Sequence[str] | None = None,
    channels: int = 3,
) -> Records:
    """``target`` and ``boxes`` of COCO's "instances" JSON; a crowd is flagged as ``group``.

    Args:
        annotations: the JSON file.
        images: the folder of its pictures.
        keep: which objects and pictures.
        categories: names of the classes, in the order of their numbers; others are left out. None: all, by their id.
        channels: C of the images.

    Raises:
        ValueError: a file that is no such JSON, a picture that is not there, an unknown category, a box that is not on
            its picture, or nothing left; the message names the file and the annotation.
    """
    path, root = Path(annotations), Path(images)
    content = _json(path)
    known = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
    names = tuple(known.values() if categories is None else categories)
    unknown = [name for name in names if name not in known.values()]
    if unknown:
        raise ValueError(f"'{path}' has no category {unknown}; it has {len(known)}: {', '.join(known.values())}"[:400])
    numbers, counts = {name: i for i, name in enumerate(names)}, Counter[str]()
    pictures = {picture["id"]: picture for picture in content["images"]}
    _check_there(path, root, [picture["file_name"] for picture in pictures.values()])
    boxes: dict[str, list[LayoutBox]] = {picture["file_name"]: [] for picture in pictures.values()}
    for note in content["annotations"]:
        what = f"'{path}', annotation {note.get('id')}"
        picture, name = pictures.get(note["image_id"]), known.get(note["category_id"])
        if picture is None or name is None:
            raise ValueError(
                f"{what} is of image {note['image_id']} and category {note['category_id']}; one is unknown"
            )
        if name not in numbers:
            counts["boxes of other categories"] += 1
            continue
        boxes[picture["file_name"]].append(_coco_box(note, picture, numbers[name], what))
    return _records(keep.kept(boxes, counts), root, names, counts, channels)


def openimages_boxes(
    annotations: Where,
    classes: Where,
    images: Where,
    keep: BoxFilter = BoxFilter(area=1e-4),
    channels: int = 3,
) -> Records:
    """``target`` and ``boxes`` of OpenImages' tables, with the flags group, occluded, depiction and inside.

    The folder says which pictures there are: boxes of others are left out, so that a part of the data set may be used
    with its whole table. The table is read line by line.

    Args:
        annotations: the CSV of boxes, with ``ImageID, LabelName, XMin, XMax, YMin, YMax, IsOccluded, ...``.
        classes: the CSV of classes, ``/m/01abc,Name`` on each line, in the order of their numbers; a shorter one leaves
            the other classes out.
        images: the folder of pictures, named by their ``ImageID``.
        keep: which objects and pictures.
        channels: C of the images.

    Raises:
        ValueError: a table without these columns, a line that is no box, a class listed twice, or nothing left.
    """
    listed = [row for row in _csv_rows(Path(classes)) if row[:1] != ["LabelName"]]
    if not listed or any(len(row) < 2 for row in listed) or len({row[0] for row in listed}) < len(listed):
        raise ValueError(f"'{classes}' must have a line '/m/01abc,Name' for each class, and each class once")
    numbers = {row[0]: number for number, row in enumerate(listed)}
    there = {path.stem: path for path in list_images(images)}
    counts = Counter[str]()
    boxes: dict[str, list[LayoutBox]] = {stem: [] for stem in there}
    for what, entry in _lines(Path(annotations), ("ImageID", "LabelName", *CORNERS, *FLAGS)):
        if entry["ImageID"] not in there:
            counts["boxes of pictures that are not in the folder"] += 1
        elif entry["LabelName"] not in numbers:
            counts["boxes of other classes"] += 1
        else:
            boxes[entry["ImageID"]].append(_line_box(entry, numbers[entry["LabelName"]], what))
    kept = {str(there[stem].relative_to(images)): found for stem, found in keep.kept(boxes, counts).items()}
    return _records(kept, Path(images), tuple(row[1] for row in listed), counts, channels)


def _records(
    boxes: Mapping[str, Sequence[LayoutBox]], root: Path, names: tuple[str, ...], counts: Counter[str], channels: int
) -> Records:
    rows = [{"target": root / name, "boxes": list(boxes[name])} for name in sorted(boxes)]
    return Records(rows, channels=channels, names=names, left_out={what: n for what, n in counts.items() if n})


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read as JSON: {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise ValueError(f"'{path}' must be an object with the lists {', '.join(lists)}, as COCO's instances are")
    required = {
        "images": {"id", "file_name", "width", "height"},
        "annotations": {"image_id", "category_id", "bbox"},
        "categories": {"id", "name"},
    }
    for name, keys in required.items():
        for i, entry in enumerate(content[name]):
            if not isinstance(entry, dict) or not keys <= entry.keys():
                raise ValueError(f"'{path}', {name}[{i}] must have {sorted(keys)}, got {entry!r:.80}")
    return content


def _coco_box(note: Mapping[str, Any], picture: Mapping[str, Any], label: int, what: str) -> LayoutBox:
    """Pixels (x, y, width, height) as fractions."""
    try:
        x, y, width, height = map(float, note["bbox"])
        W, H = float(picture["width"]), float(picture["height"])
        corners = x / W, y / H, (x + width) / W, (y + height) / H
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{what} has no box (x, y, width, height) in pixels, or its image no size: {error}") from error
    return (label, *_on_picture(corners, what), ("group",) if note.get("iscrowd") else ())


def _check_there(path: Path, root: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(names)} pictures that '{path}' names are not in '{root}': "
            f"'{missing[0]}' for one; get them, or take them out of the file"
        )


def _csv_rows(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file, strict=True)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' cannot be read as CSV: {error}") from error


def _lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(name of the line, its columns)."""
    rows = _csv_rows(path)
    head = next(rows, [])
    missing = [name for name in columns if name not in head]
    if missing:
        raise ValueError(f"'{path}' has no columns {missing}; its first line is {','.join(head):.120}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise ValueError(f"'{path}', line {number} has {len(row)} fields, the head line {len(head)}")
        yield f"'{path}', line {number}", dict(zip(head, row, strict=True))


def _line_box(entry: Mapping[str, str], label: int, what: str) -> LayoutBox:
    try:
        x0, y0, x1, y1 = (float(entry[name]) for name in CORNERS)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    flags = tuple(flag for column, flag in FLAGS.items() if entry[column] == "1")  # -1: nobody knows
    return (label, *_on_picture((x0, y0, x1, y1), what), flags)


def _on_picture(corners: tuple[float, float, float, float], what: str) -> tuple[float, float, float, float]:
    """The corners, those that stick out a little put on the border."""
    x0, y0, x1, y1 = corners
    if not (all(-SLACK <= value <= 1 + SLACK for value in corners) and x0 <= x1 and y0 <= y1):
        told = ", ".join(f"{value:.4g}" for value in corners)
        raise ValueError(
            f"{what} is no box on its picture: (x0, y0, x1, y1) = ({told}), of a picture from 0 to 1; "
            "correct it or take it out"
        )
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in corners)
    return x0, y0, x1, y1
