"""Images of a layout: objects with a class and a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from torch import Tensor

from ldmkit.conditioners.layout_tokens import FULL, Box, Point, Region, check_region
from ldmkit.conditioning import AlsoReads
from ldmkit.tasks.contract import Inputs
from ldmkit.tasks.fitting import classes_of, source_of
from ldmkit.tasks.labels import class_index

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion

COORDINATES = {"boxes": ("x0", "y0", "x1", "y1"), "points": ("x", "y")}


@dataclass(frozen=True)
class LayoutToImage:
    """``boxes``, tuples ``(label, x0, y0, x1, y1)`` with a class's index or name, or ``points``, ``(label, x, y)``.

    Coordinates are fractions of the picture, origin top left. With ``box_size=(height, width)`` they are pixels of a
    picture of that size, whatever the size of the result; without it a coordinate above 1 is refused and not guessed
    at. One list of tuples is one image, a list of those a batch; ``[[]]`` is one image without objects. ``crop``,
    ``(x0, y0, x1, y1)`` in the same unit, is the part of the picture that is shown: one for all, or one each.
    :func:`ldmkit.conditioners.draw_layout` draws what the batch holds.

    Args:
        objects: ``boxes`` or ``points``.
        classes: K; None: what the model's conditioner says.
        names: the classes' names; None: those that travel with the model.
        crops: whether the model is told the crop.
    """

    objects: Literal["boxes", "points"] = "boxes"
    classes: int | None = None
    names: tuple[str, ...] | None = None
    crops: bool = True

    def __post_init__(self) -> None:
        if self.objects not in COORDINATES:
            raise ValueError(f"task 'layout-to-image' takes one of {list(COORDINATES)}, got objects={self.objects!r}")

    @property
    def takes(self) -> tuple[str, ...]:
        """The objects, their unit and, where the model is told, the crop."""
        return (self.objects, "box_size", *(["crop"] if self.crops else []))

    @property
    def fills(self) -> tuple[str, ...]:
        """The objects and, where the model is told, the crop."""
        return (self.objects, *(["crop"] if self.crops else []))

    def fitted(self, model: LatentDiffusion) -> Self:
        """With the model's kind of object, its classes and their names."""
        points = source_of(model, "boxes") is None and source_of(model, "points") is not None
        objects: Literal["boxes", "points"] = "points" if points else self.objects
        source = source_of(model, objects)
        classes, names = classes_of(source)
        return replace(
            self,
            objects=objects,
            classes=self.classes or classes,
            names=self.names or names,
            crops=isinstance(source, AlsoReads) and "crop" in source.also_reads,
        )

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """The objects, per image a list of :class:`Box` or :class:`Point`, and the crops, in [0, 1] of the picture.

        Raises:
            ValueError: no layout, an unknown class, an object that is empty or not on the picture; with the image's
                and the object's number.
            TypeError: something that is no layout.
        """
        if inputs.get(self.objects) is None:
            fields = ", ".join(("label", *COORDINATES[self.objects]))
            raise ValueError(
                f"task 'layout-to-image' needs {self.objects}=: a list of ({fields}), or one for each image"
            )
        layouts = _layouts(_plain(inputs[self.objects]), self.objects)
        size = _box_size(inputs.get("box_size"))
        objects = [
            [self._object(item, size, f"{self.objects}[{i}][{j}]") for j, item in enumerate(layout)]
            for i, layout in enumerate(layouts)
        ]
        if not self.crops:
            return {self.objects: objects}
        return {self.objects: objects, "crop": _crops(_plain(inputs.get("crop")), size, len(objects))}

    def _object(self, item: Any, size: tuple[float, float], what: str) -> Box | Point:  # noqa: ANN401
        kind: type[Box] | type[Point] = Box if self.objects == "boxes" else Point
        label, *values = _fields(item, kind, what)
        count = len(COORDINATES[self.objects])
        if len(values) not in (count, count + 1):
            fields = ", ".join(("label", *COORDINATES[self.objects]))
            raise ValueError(f"{what} must be ({fields}), got {len(values) + 1} values")
        number = class_index(_whole(label), self.classes, self.names, f"the class of {what}")
        scaled = _scaled(values[:count], size, what)
        places = list(zip(scaled[::2], scaled[1::2], strict=True))
        made = kind.at(places, number, tuple(values[count]) if len(values) > count else ())
        try:
            made.check(what)
        except ValueError as error:
            raise ValueError(f"{error}; or give box_size=(height, width) of the picture") from error
        return made


def _plain(value: object) -> Any:  # noqa: ANN401
    """Arrays and tensors, alone or in a list, as lists."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [one.tolist() if isinstance(one, Tensor | np.ndarray) else one for one in value]
    return value


def _layouts(given: Any, name: str) -> list[Sequence[Any]]:  # noqa: ANN401
    """One layout per image; a single one is told by its items, which begin with a class."""
    if not isinstance(given, list):
        raise TypeError(
            f"{name} must be a list of objects, or one such list for each image, got {type(given).__name__}"
        )
    if not given:
        raise ValueError(f"{name} is an empty list: [[]] is one image without objects")
    if _is_object(given[0]):
        return [given]
    for i, layout in enumerate(given):
        if not isinstance(layout, list | tuple) or _is_object(layout):
            raise TypeError(f"{name}[{i}] must be a list of objects, as {name}[0] is, got {layout!r:.60}")
    return given


def _is_object(item: object) -> bool:
    if isinstance(item, Box | Point):
        return True
    return isinstance(item, list | tuple) and len(item) > 0 and isinstance(item[0], int | float | str | np.number)


def _fields(item: object, kind: type[Box] | type[Point], what: str) -> Sequence[Any]:
    if isinstance(item, Box | Point):
        if not isinstance(item, kind):
            raise TypeError(f"{what} must be a {kind.__name__}, got {item!r}")
        return (item.label, *(value for place in item.places for value in place), item.flags)
    if not _is_object(item):
        raise TypeError(f"{what} must be a {kind.__name__} or a tuple of its fields, got {item!r:.60}")
    return list(item)  # type: ignore[call-overload,no-any-return]


def _whole(label: object) -> object:
    """A label out of a table of floats as the integer that it is."""
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _box_size(given: Any) -> tuple[float, float]:  # noqa: ANN401
    """(height, width) of the unit of the coordinates; (1, 1) for fractions."""
    if given is None:
        return 1.0, 1.0
    try:
        height, width = (float(side) for side in given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"box_size must be (height, width) in pixels, got {given!r:.60}") from error
    if not (0 < height < float("inf") and 0 < width < float("inf")):
        raise ValueError(f"box_size must be (height, width) in pixels, above 0, got {given}")
    return height, width


def _scaled(values: Sequence[Any], size: tuple[float, float], what: str) -> list[float]:
    """x by the width, y by the height."""
    try:
        return [float(value) / size[1 - i % 2] for i, value in enumerate(values)]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must have numbers as coordinates, got {list(values)!r:.60}") from error


def _crops(given: Any, size: tuple[float, float], count: int) -> list[Region]:  # noqa: ANN401
    if given is None:
        return [FULL] * count
    one = isinstance(given, list) and len(given) == 4 and all(isinstance(value, int | float) for value in given)
    crops = [given] * count if one else given
    if not isinstance(crops, list) or len(crops) != count:
        raise ValueError(f"crop must be (x0, y0, x1, y1) for all or one for each of {count} images, got {given!r:.60}")
    return [FULL if crop is None else _region(crop, size, f"crop[{i}]") for i, crop in enumerate(crops)]


def _region(crop: Any, size: tuple[float, float], what: str) -> Region:  # noqa: ANN401
    if not isinstance(crop, list | tuple) or len(crop) != 4:
        raise TypeError(f"{what} must be (x0, y0, x1, y1), got {crop!r:.60}")
    x0, y0, x1, y1 = _scaled(crop, size, what)
    check_region((x0, y0, x1, y1), what)
    return x0, y0, x1, y1
