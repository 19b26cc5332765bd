"""Sizes, crops and flips that keep a record's image, mask, label map and boxes on one another.

    (record, seed) -> record

Each is a function of its arguments alone; :func:`ldmkit.training.loop.train` takes one as ``augment``. Whatever else a
record holds is kept as it is: a caption that says "left" is wrong after a flip, and only its author can know.

Boxes and points are told in [0, 1] of what the record shows. Where it holds ``crop``, which :class:`TellCrop` adds,
they are told in [0, 1] of the whole picture, and ``crop`` is the part of it that the record shows: steps narrow and
mirror ``crop``, and leave out no object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ldmkit.conditioners.layout_tokens import (
    FULL,
    Box,
    LayoutObject,
    Point,
    Region,
    as_object,
    check_region,
    mirrored,
    part_of,
)
from ldmkit.data.draws import Draws
from ldmkit.data.resampling import Size, smooth_cubic

Record = Mapping[str, Any]
Step = Callable[[Record, int], Record]
T = TypeVar("T", bound=LayoutObject)
IMAGES = ("target", "image")
NEAREST = ("mask_image", "segmentation")
OBJECTS: Mapping[str, type[LayoutObject]] = {"boxes": Box, "points": Point}
UNKNOWN = ("low_res", "latent", "latent_std", "depth")
"""What is made of the picture as it is shown, and therefore after the steps here."""


@dataclass(frozen=True)
class Chain:
    """Several steps, one after the other, whose draws are independent.

    Args:
        steps: ``(record, seed) -> record`` each.
    """

    steps: tuple[Step, ...]

    def __call__(self, record: Record, seed: int) -> Record:
        """The record after all steps."""
        for number, step in enumerate(self.steps):
            record = step(record, Draws(seed, f"step {number}").below(2**63))
        return record


@dataclass(frozen=True)
class Resize:
    """The shorter side to a length, the other in proportion; the seed changes nothing.

    Images are resampled by antialiased bicubic, masks and label maps take the nearest pixel.

    Args:
        side: pixels of the shorter side.

    Raises:
        ValueError: a side below 1; when called, a record that cannot be resized.
    """

    side: int

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"Resize needs a side of at least 1 pixel, got {self.side}")

    def __call__(self, record: Record, seed: int) -> Record:
        """The record in the new size."""
        H, W = _size(record, "Resize")
        size = (self.side, max(self.side, round(W * self.side / H)))
        if W < H:
            size = (max(self.side, round(H * self.side / W)), self.side)
        images = {word: smooth_cubic(record[word], size).clamp(0, 1) for word in IMAGES if word in record}
        return {**record, **images, **{word: _nearest(record[word], size) for word in NEAREST if word in record}}


@dataclass(frozen=True)
class CenterCrop:
    """The middle of a picture; the seed changes nothing.

    Args:
        size: (height, width) in pixels, or one number for both.
        visible: a box is kept if more than this part of its area is in the crop, in [0, 1).

    Raises:
        ValueError: numbers out of range; when called, a picture that is smaller or a record that cannot be cropped.
    """

    size: int | Size
    visible: float = 0.25

    def __post_init__(self) -> None:
        _check_crop("CenterCrop", self.size, self.visible)

    def __call__(self, record: Record, seed: int) -> Record:
        """The record of the crop, to which boxes are clipped and in whose coordinates they are told."""
        spare = _spare(record, _pair(self.size), "CenterCrop")
        return _cropped(record, (spare[0] // 2, spare[1] // 2), _pair(self.size), self.visible)


@dataclass(frozen=True)
class RandomCrop:
    """A part of a picture, at any place alike.

    Args:
        size: (height, width) in pixels, or one number for both.
        visible: a box is kept if more than this part of its area is in the crop, in [0, 1).

    Raises:
        ValueError: numbers out of range; when called, a picture that is smaller or a record that cannot be cropped.
    """

    size: int | Size
    visible: float = 0.25

    def __post_init__(self) -> None:
        _check_crop("RandomCrop", self.size, self.visible)

    def __call__(self, record: Record, seed: int) -> Record:
        """The record of the crop, to which boxes are clipped and in whose coordinates they are told."""
        spare, draws = _spare(record, _pair(self.size), "RandomCrop"), Draws(seed, "crop")
        place = draws.between(0, spare[0]), draws.between(0, spare[1])
        return _cropped(record, place, _pair(self.size), self.visible)


@dataclass(frozen=True)
class RandomSquare:
    """A square part of a picture, of any side and at any place, brought to one size.

    Args:
        size: pixels of the result's side; the part is at least as large, or as large as a smaller picture lets it be.
        least: the least side of the part, in [0, 1] of the shorter side; with 1 it slides along the longer one.
        visible: a box is kept if more than this part of its area is in the crop, in [0, 1).

    Raises:
        ValueError: numbers out of range; when called, a record that cannot be cropped.

    Source: ``random-2d`` of taming-transformers' layouts with ``least=0``, ``random-1d`` with 1; the original's
        super-resolution data take half of the shorter side as the least.
    """

    size: int
    least: float = 0.0
    visible: float = 0.25

    def __post_init__(self) -> None:
        _check_crop("RandomSquare", self.size, self.visible)
        if not 0 <= self.least <= 1:
            raise ValueError(f"RandomSquare needs 0 <= least <= 1, got {self.least}")

    def __call__(self, record: Record, seed: int) -> Record:
        """The record of the part, in its size."""
        size, draws = _size(record, "RandomSquare"), Draws(seed, "square")
        shorter = min(size)
        side = draws.between(min(max(self.size, int(self.least * shorter)), shorter), shorter)
        place = draws.between(0, size[0] - side), draws.between(0, size[1] - side)
        return Resize(self.size)(_cropped(record, place, (side, side), self.visible), seed)


@dataclass(frozen=True)
class TellCrop:
    """From here on the record tells what part of the picture it shows, as ``crop``; the seed changes nothing.

    For layout models that are told the crop, and before the steps that crop. ``crop`` is (x0, y0, x1, y1) in [0, 1] of
    the whole picture, and boxes and points stay the whole picture's.

    Source: ``encode_crop`` of taming-transformers, with which the published layout model was trained.
    """

    def __call__(self, record: Record, seed: int) -> Record:
        """The record with ``crop``: the whole picture, unless it says another already."""
        return {"crop": FULL, **record}


@dataclass(frozen=True)
class ShuffleObjects:
    """The objects of a layout in any order alike, for models that read them one after the other.

    Source: taming-transformers, which shuffles the list of the data set itself.
    """

    def __call__(self, record: Record, seed: int) -> Record:
        """The record with its boxes and points in another order."""
        order = {word: Draws(seed, word).order(len(record[word])) for word in OBJECTS if word in record}
        return {**record, **{word: [record[word][i] for i in places] for word, places in order.items()}}


@dataclass(frozen=True)
class Flip:
    """Left and right exchanged, with a chance.

    Args:
        chance: in [0, 1].

    Raises:
        ValueError: a chance out of range; when called, a record that cannot be flipped.
    """

    chance: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1:
            raise ValueError(f"Flip needs a chance in [0, 1], got {self.chance}")

    def __call__(self, record: Record, seed: int) -> Record:
        """The record, or its mirror image."""
        _size(record, "Flip")
        if not Draws(seed, "flip").chance(self.chance):
            return record
        pixels = {word: record[word].flip(-1) for word in (*IMAGES, *NEAREST) if word in record}
        objects: dict[str, list[LayoutObject]] = {
            word: [item.flipped() for item in _objects(record, word, kind)]
            for word, kind in OBJECTS.items()
            if word in record
        }
        crop = {"crop": mirrored(_crop(record))} if "crop" in record else {}
        return {**record, **pixels, **objects, **crop}


def _size(record: Record, owner: str) -> Size:
    """(H, W) of what a record shows; refuse a record of which not everything can follow."""
    stuck = [word for word in UNKNOWN if word in record]
    if stuck:
        raise ValueError(f"{owner} cannot move {stuck} along with the picture: make {stuck} from its result")
    for word, kind in OBJECTS.items():
        for i, item in enumerate(_objects(record, word, kind) if word in record else ()):
            item.check(f"{word}[{i}] of a record")  # pixels would be outside of every crop, and left out
    pixels = {word: record[word] for word in (*IMAGES, *NEAREST) if word in record}
    for word, value in pixels.items():
        if not isinstance(value, Tensor) or value.ndim < 2:
            raise TypeError(
                f"{owner} needs '{word}' as a tensor (C, H, W), got {type(value).__name__}: ldmkit.data.Records reads "
                "paths and pictures"
            )
    sizes = {word: (value.shape[-2], value.shape[-1]) for word, value in pixels.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"{owner} needs pictures of one size in a record, got {sizes or 'none'}")
    return next(iter(sizes.values()))


def _nearest(value: Tensor, size: Size) -> Tensor:
    """A label map (H, W) or (K, H, W) or a mask (1, H, W), by the pixel at the middle of each new one."""
    planes = value[None] if value.ndim == 2 else value
    rows, columns = (_middles(old, new) for old, new in zip(planes.shape[-2:], size, strict=True))
    taken = planes[:, rows][:, :, columns]
    return taken[0] if value.ndim == 2 else taken


def _middles(old: int, new: int) -> Tensor:
    return torch.arange(new).mul(2).add(1).mul(old).div(2 * new, rounding_mode="floor")


def _pair(size: int | Size) -> Size:
    return (size, size) if isinstance(size, int) else size


def _check_crop(owner: str, size: int | Size, visible: float) -> None:
    if min(_pair(size)) < 1 or not 0 <= visible < 1:
        raise ValueError(f"{owner} needs sides of at least 1 pixel and 0 <= visible < 1, got {size} and {visible}")


def _spare(record: Record, size: Size, owner: str) -> Size:
    """How many pixels are left over beside the crop, (down, across)."""
    H, W = _size(record, owner)
    if size[0] > H or size[1] > W:
        raise ValueError(f"{owner} of {size[0]} x {size[1]} pixels from a picture of {H} x {W}: put Resize before it")
    return H - size[0], W - size[1]


def _cropped(record: Record, place: Size, size: Size, visible: float) -> Record:
    H, W = next(record[word].shape[-2:] for word in (*IMAGES, *NEAREST) if word in record)
    (top, left), (h, w) = place, size
    region = (left / W, top / H, (left + w) / W, (top + h) / H)
    pixels = {
        word: record[word][..., top : top + h, left : left + w].clone()
        for word in (*IMAGES, *NEAREST)
        if word in record
    }
    if "crop" in record:
        return {**record, **pixels, "crop": part_of(_crop(record), region)}
    objects: dict[str, list[Any]] = {}
    if "boxes" in record:
        objects["boxes"] = _clipped(_objects(record, "boxes", Box), region, visible)
    if "points" in record:
        seen = [point.within(region) for point in _objects(record, "points", Point)]
        objects["points"] = [point for point in seen if point is not None]
    return {**record, **pixels, **objects}


def _objects(record: Record, word: str, kind: type[T]) -> list[T]:
    return [as_object(kind, item) for item in record[word]]


def _crop(record: Record) -> Region:
    """The record's own crop, a tuple, list or tensor."""
    x0, y0, x1, y1 = (float(value) for value in record["crop"])
    check_region((x0, y0, x1, y1), "crop of a record")
    return x0, y0, x1, y1


def _clipped(boxes: Sequence[Box], region: Region, visible: float) -> list[Box]:
    """What is seen of each box of which enough is seen, in the crop's coordinates."""
    part = (region[2] - region[0]) * (region[3] - region[1])
    seen = [(box, box.within(region)) for box in boxes]
    return [inner for box, inner in seen if inner is not None and _area(inner) * part > visible * _area(box)]


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)
