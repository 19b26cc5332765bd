"""Records out of anything that gives dictionaries: rows that name files, or hold pictures, become tensors.

    {"target": "a.jpg", "prompt": "a dog"}  ->  {"target": (C, H, W) in [0, 1], "prompt": "a dog"}

The folders, captions, boxes and maps of this package are functions that make rows; what they have in common is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ldmkit.images import WHITE, Colour, read_images, read_label_maps, read_masks

Row = Mapping[str, Any]
Record = dict[str, Any]
PICTURES = ("target", "image", "low_res")
ALIGNED = ("target", "image", "mask_image", "segmentation")
"""What shows the same pixels, and so has one size."""


@runtime_checkable
class Rows(Protocol):
    """Dictionaries by place: a list of them, or anything else with a length and an index."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Any: ...  # noqa: ANN401 - a row, of whatever mapping


@dataclass(frozen=True)
class Reading:
    """Makes a record of a row.

    ``target``, ``image`` and ``low_res`` are read as images, ``mask_image`` as a mask, ``segmentation`` as a label map;
    each may be a path or anything else that :mod:`ldmkit.images` reads. Everything else is kept as it is.

    Args:
        columns: the row's word for each of the record's, ``{"target": "image", "prompt": "text"}``; whatever it does
            not name is left out. ``"jpg;png"`` is the first of the two that a row has, and ``"json:caption"`` the
            caption in the dictionary that is its json. None: the rows speak the words of the tasks.
        channels: C of the images.
        background: what transparency is laid on, in [0, 1].
        classes: K of the label maps; None: not checked.
        palette: the colour of each class, for label maps that are pictures in colours.
        relabel: labels of the maps to be replaced, as ``{255: 182}``.
    """

    columns: Mapping[str, str] | None = None
    channels: int = 3
    background: Colour = WHITE
    classes: int | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    relabel: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, row: object, what: str = "the row") -> Record:
        """The record.

        Args:
            row: a mapping.
            what: how messages call it.

        Raises:
            TypeError: no mapping.
            ValueError: a row without a column, a picture that cannot be read, two that differ in size.
        """
        given = self._renamed(row, what)
        record = {word: self._read(word, value, what) for word, value in given.items()}
        sizes = {word: tuple(record[word].shape[-2:]) for word in ALIGNED if word in record}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{word}{_named(given[word])} {h} x {w}" for word, (h, w) in sizes.items())
            raise ValueError(f"{what} shows different sizes: {told}; bring them to one size")
        return record

    def _renamed(self, row: object, what: str) -> Row:
        if not isinstance(row, Mapping):
            raise TypeError(f"{what} must be a dictionary, got {type(row).__name__}")
        if self.columns is None:
            return row
        found = {ours: _column(row, theirs) for ours, theirs in self.columns.items()}
        missing = sorted(self.columns[ours] for ours, values in found.items() if not values)
        if missing:
            raise ValueError(f"{what} has no {missing}; it has {sorted(row)}")
        return {ours: values[0] for ours, values in found.items()}

    def _read(self, word: str, value: Any, row: str) -> Any:  # noqa: ANN401
        what = f"{word} of {row}"
        if word in PICTURES:
            return read_images(value, what, self.channels, self.background)[0]
        if word == "mask_image":
            return read_masks(value, what)[0]
        return self._labels(value, f"{what}{_named(value)}") if word == "segmentation" else value

    def _labels(self, value: Any, what: str) -> Tensor:  # noqa: ANN401
        labels = read_label_maps(value, what, None if self.relabel else self.classes, self.palette)[0]
        if not self.relabel:
            return labels
        if labels.is_floating_point():
            raise ValueError(f"{what} has a channel per class, and relabel={dict(self.relabel)} is for labels")
        changed = labels.clone()
        for old, new in self.relabel.items():
            changed[labels == old] = new
        return read_label_maps(changed, what, self.classes)[0].to(torch.int64)


@dataclass(frozen=True)
class Records:
    """A data set of rows whose pictures are read when they are asked for, as :class:`Reading` reads them.

    Args:
        rows: a list of dictionaries, or anything with a length and an index that gives them.
        columns: as :class:`Reading`.
        channels: C of the images.
        background: what transparency is laid on, in [0, 1].
        classes: K of the label maps; None: not checked.
        palette: the colour of each class, for label maps that are pictures in colours.
        relabel: labels of the maps to be replaced, as ``{255: 182}``.
        names: the classes' names, for the model that is trained.
        left_out: what a filter left out, and how many.

    Raises:
        TypeError: rows without a length and an index.
        ValueError: no rows. In ``[i]``: a row without a column, a picture that cannot be read, two of one row that
            differ in size; the message names the file or the row.
    """

    rows: Rows
    columns: Mapping[str, str] | None = None
    channels: int = 3
    background: Colour = WHITE
    classes: int | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    relabel: Mapping[int, int] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.rows, Rows):
            raise TypeError(
                f"rows need a length and an index, got {type(self.rows).__name__}: make list(...) of what is only "
                "iterated over, or train on a Stream of it"
            )
        if not len(self.rows):
            left = "".join(f"; left out: {count} {what}" for what, count in self.left_out.items())
            raise ValueError(f"there are no rows, so there is nothing to train on{left}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Record:
        """The record of a row.

        Raises:
            IndexError: outside [0, len - 1].
            ValueError: it cannot be read.
        """
        if not 0 <= place < len(self.rows):
            raise IndexError(f"rows 0 to {len(self.rows) - 1}, got {place}")
        reading = Reading(self.columns, self.channels, self.background, self.classes, self.palette, self.relabel)
        return reading(self.rows[place], f"row {place}")


def options(column: str) -> tuple[tuple[str, str], ...]:
    """(name, field in it or "") of each of the columns that ``"jpg;png"`` or ``"json:caption"`` may mean."""
    parts = (one.partition(":") for one in column.split(";"))
    return tuple((name, inner) for name, _, inner in parts)


def _column(row: Row, column: str) -> list[Any]:
    """The value of a column, alone; nothing where the row has none."""
    if column in row:
        return [row[column]]
    for name, inner in options(column):
        outer = row.get(name)
        if inner and isinstance(outer, Mapping) and inner in outer:
            return [outer[inner]]
        if not inner and name in row:
            return [outer]
    return []


def _named(value: object) -> str:
    """A file's name, in quotes; nothing for a value that is no file."""
    return f" '{value}'" if isinstance(value, str | PathLike) else ""
