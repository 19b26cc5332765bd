"""Layouts as token sequences, and back.

One vocabulary of V tokens serves everything. With n = floor(sqrt(V)) cells per side, a place is the token

    place(x, y) = n * round(y * (n - 1)) + round(x * (n - 1)),    x, y in [0, 1], origin top left

(halves round to even), an object of class k out of K with flags f is ``k + K * sum(f)``, and V - 1 is padding. A box
is the triple (object, top left, bottom right), a point the pair (object, place). A sequence is a fixed number of
objects, padded, and then, with crop tokens, the two corners of the part of the picture that the model is shown.

Objects keep the order given: the original shuffles the data set's own list, which belongs to data augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast

Place = tuple[float, float]
Region = tuple[float, float, float, float]

FULL: Region = (0.0, 0.0, 1.0, 1.0)
FLAGS: Mapping[str, int] = {"group": 1, "occluded": 2, "depiction": 4, "inside": 8}
SLACK = 1e-6  # what dividing pixel coordinates by the size of the picture may leave outside [0, 1]


class LayoutObject(Protocol):
    """What a tokenizer needs of an object: :class:`Box` or :class:`Point`."""

    tokens: ClassVar[int]

    @property
    def label(self) -> int:
        """The class."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Names out of ``FLAGS``."""

    @property
    def places(self) -> tuple[Place, ...]:
        """The places that are told, one token each."""

    @classmethod
    def at(cls, places: Sequence[Place], label: int, flags: tuple[str, ...]) -> Self:
        """An object from its places."""

    def check(self, what: str) -> None:
        """Refuse an object that is no object on the picture, calling it ``what``."""

    def flipped(self) -> Self:
        """The same object in the mirrored picture."""

    def shown(self, crop: Region) -> bool:
        """Whether the object may be seen in the crop."""

    def within(self, crop: Region) -> Self | None:
        """What lies in the crop, in the crop's coordinates; None where nothing does."""


@dataclass(frozen=True)
class Box:
    """An object known by its corners, (x0, y0) top left and (x1, y1) bottom right, in [0, 1] of the picture.

    ``flags`` are names out of ``FLAGS``, as OpenImages annotates them; a vocabulary encodes those that it carries.
    """

    tokens: ClassVar[int] = 3
    label: int
    x0: float
    y0: float
    x1: float
    y1: float
    flags: tuple[str, ...] = ()

    @classmethod
    def at(cls, places: Sequence[Place], label: int, flags: tuple[str, ...]) -> Self:
        """A box from its two corners."""
        return cls(label, *places[0], *places[1], flags)

    @property
    def places(self) -> tuple[Place, ...]:
        """The corners, top left first."""
        return (self.x0, self.y0), (self.x1, self.y1)

    def check(self, what: str) -> None:
        """Refuse a box that is not finite, empty or not on the picture, calling it ``what``."""
        check_region((self.x0, self.y0, self.x1, self.y1), what)

    def centre(self) -> Point:
        """The object as a point."""
        return Point(self.label, (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2, self.flags)

    def flipped(self) -> Self:
        """The same object in the mirrored picture."""
        return replace(self, x0=1 - self.x1, x1=1 - self.x0)

    def shown(self, crop: Region) -> bool:
        """Whether a part of the box, however small, lies in the crop."""
        return self.x0 < crop[2] and crop[0] < self.x1 and self.y0 < crop[3] and crop[1] < self.y1

    def within(self, crop: Region) -> Self | None:
        """The part of the box that lies in the crop, in the crop's coordinates; None where there is none."""
        corners = [_into(place, crop) for place in self.places]
        return self.at(corners, self.label, self.flags) if self.shown(crop) else None


@dataclass(frozen=True)
class Point:
    """An object known by its centre, (x, y) in [0, 1] of the picture; its extent is not known."""

    tokens: ClassVar[int] = 2
    label: int
    x: float
    y: float
    flags: tuple[str, ...] = ()

    @classmethod
    def at(cls, places: Sequence[Place], label: int, flags: tuple[str, ...]) -> Self:
        """A point from its place."""
        return cls(label, *places[0], flags)

    @property
    def places(self) -> tuple[Place, ...]:
        """The one place."""
        return ((self.x, self.y),)

    def check(self, what: str) -> None:
        """Refuse a point that is not finite or not on the picture, calling it ``what``."""
        _check_on_picture((self.x, self.y), what)

    def flipped(self) -> Self:
        """The same object in the mirrored picture."""
        return replace(self, x=1 - self.x)

    def shown(self, crop: Region) -> bool:
        """True: an object with its centre outside the crop may still reach into it."""
        del crop
        return True

    def within(self, crop: Region) -> Self | None:
        """The point in the crop's coordinates; None where it lies outside."""
        inside = crop[0] <= self.x <= crop[2] and crop[1] <= self.y <= crop[3]
        return self.at([_into((self.x, self.y), crop)], self.label, self.flags) if inside else None


T = TypeVar("T", bound=LayoutObject)


def as_object(kind: type[T], item: LayoutObject | Sequence[Any]) -> T:
    """An object from itself or from a tuple of its fields, ``(label, x0, y0, x1, y1)`` or ``(label, x, y)``.

    Raises:
        ValueError: neither.
    """
    if isinstance(item, kind):
        return item
    try:
        return kind(*cast(Sequence[Any], item))
    except TypeError as error:
        raise ValueError(f"an object is a {kind.__name__} or a tuple of its fields, got {item!r}") from error


@dataclass(frozen=True)
class Vocabulary:
    """What each of V tokens means.

    Args:
        classes: K, the number of object classes.
        tokens: V; more than ``K * (1 + sum of flags)``.
        flags: what an object's token tells beside its class, names out of ``FLAGS``. The original's OpenImages models
            use all four, its COCO models none.

    Raises:
        ValueError: an unknown flag, or more object tokens than the vocabulary holds.
    """

    classes: int
    tokens: int = 8192
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_flags(self.flags)
        if self.classes < 1 or self.tokens < 4:
            raise ValueError(
                f"a layout vocabulary needs at least 1 class and 4 tokens, got {self.classes} and {self.tokens}"
            )
        if self.objects >= self.tokens:
            raise ValueError(
                f"{self.classes} classes with the flags {list(self.flags)} need {self.objects} object tokens and one "
                f"for padding, the vocabulary has {self.tokens}: raise tokens or drop flags"
            )

    @property
    def pad(self) -> int:
        """The token of a slot without an object, V - 1."""
        return self.tokens - 1

    @property
    def cells(self) -> int:
        """The grid's cells per side, n."""
        return math.isqrt(self.tokens)

    @property
    def objects(self) -> int:
        """How many tokens, from 0, stand for objects."""
        return self.classes * (1 + sum(FLAGS[flag] for flag in set(self.flags)))

    def place(self, place: Place) -> int:
        """The token of a place in [0, 1] x [0, 1]."""
        n = self.cells
        x, y = (round(float(value) * (n - 1)) for value in place)
        return n * y + x

    def position(self, token: int) -> Place:
        """The place in the middle of a token's cell: the inverse of :meth:`place` to half a cell."""
        n = self.cells
        if not 0 <= token < n * n:
            raise ValueError(f"token {token} is no place: a grid of {n} x {n} has the tokens 0 to {n * n - 1}")
        return token % n / (n - 1), token // n / (n - 1)

    def word(self, label: int, flags: Sequence[str] = ()) -> int:
        """The token of an object; flags that the vocabulary does not carry are left out."""
        if int(label) != label or not 0 <= label < self.classes:
            raise ValueError(f"a class is a whole number in [0, {self.classes - 1}], got {label!r}")
        _check_flags(flags)
        return int(label) + self.classes * sum(FLAGS[flag] for flag in {*flags} & {*self.flags})

    def meaning(self, token: int) -> tuple[int, tuple[str, ...]]:
        """The class and flags of an object's token: the inverse of :meth:`word`."""
        modifier, label = divmod(token, self.classes)
        flags = tuple(flag for flag in FLAGS if flag in self.flags and modifier & FLAGS[flag])
        if modifier != sum(FLAGS[flag] for flag in flags):
            raise ValueError(f"token {token} is no object of {self.classes} classes with the flags {list(self.flags)}")
        return label, flags


@dataclass(frozen=True)
class LayoutTokenizer(Generic[T]):
    """Layouts of one kind of object to sequences of a fixed length.

    Args:
        kind: :class:`Box` or :class:`Point`.
        vocabulary: what the tokens mean.
        max_objects: slots for objects.
        crop_tokens: True: objects are told in the whole picture's coordinates, and the crop by two tokens. False:
            objects are told in the crop's coordinates, cut at its border, and the crop is not told.

    Raises:
        ValueError: no slots.

    Source: ``ObjectsBoundingBoxConditionalBuilder`` and ``ObjectsCenterPointsConditionalBuilder`` of
    taming-transformers. The latter makes its points from boxes: ``[b.centre() for b in boxes if b.shown(crop)]``.
    Without crop tokens, which no published model goes without, the original moves a box that the crop cuts on the left
    or at the top but does not shorten it; here it is cut.
    """

    kind: type[T]
    vocabulary: Vocabulary
    max_objects: int = 30
    crop_tokens: bool = True

    def __post_init__(self) -> None:
        if self.max_objects < 1:
            raise ValueError(f"a layout needs at least 1 slot for objects, got max_objects = {self.max_objects}")

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.kind.tokens * self.max_objects + 2 * self.crop_tokens

    def encode(self, objects: Iterable[T], crop: Region = FULL, flip: bool = False) -> list[int]:
        """Tokens of a layout that is seen through a crop and then mirrored.

        Args:
            objects: at most ``max_objects``, beside boxes outside the crop, which are left out.
            crop: (x0, y0, x1, y1) in [0, 1] of the whole picture.
            flip: mirror objects and crop left to right.

        Raises:
            ValueError: an object or crop that is not finite, empty or not on the picture; an unknown class or flag;
                too many objects.
        """
        check_region(crop, "the crop")
        shown = self._shown(objects, crop)
        if flip:
            shown, crop = [item.flipped() for item in shown], mirrored(crop)
        if len(shown) > self.max_objects:
            raise ValueError(
                f"a layout has at most {self.max_objects} objects, got {len(shown)}: leave out the smallest"
            )
        v = self.vocabulary
        tokens = [t for item in shown for t in (v.word(item.label, item.flags), *map(v.place, item.places))]
        tokens += [v.pad] * (self.kind.tokens * self.max_objects - len(tokens))
        return [*tokens, v.place(crop[:2]), v.place(crop[2:])] if self.crop_tokens else tokens

    def decode(self, sequence: Sequence[int]) -> tuple[list[T], Region]:
        """The objects and the crop of a sequence, to half a cell of the grid: the inverse of :meth:`encode`.

        A box thinner than a cell comes back with two equal sides. Without crop tokens the region is the full picture,
        because coordinates are then the crop's own.

        Raises:
            ValueError: a sequence of another length, or a token that does not fit its place.
        """
        if len(sequence) != self.length:
            raise ValueError(f"a sequence of this layout has {self.length} tokens, got {len(sequence)}")
        v, size = self.vocabulary, self.kind.tokens
        objects = []
        for start in range(0, size * self.max_objects, size):
            word, *places = sequence[start : start + size]
            if word != v.pad:
                objects.append(self.kind.at([v.position(token) for token in places], *v.meaning(word)))
        if not self.crop_tokens:
            return objects, FULL
        return objects, (*v.position(sequence[-2]), *v.position(sequence[-1]))

    def _shown(self, objects: Iterable[T], crop: Region) -> list[T]:
        checked = list(objects)
        for number, item in enumerate(checked):
            item.check(f"object {number}, a {self.kind.__name__.lower()} of class {item.label},")
        if self.crop_tokens:
            return [item for item in checked if item.shown(crop)]
        cut = (item.within(crop) for item in checked)
        return [item for item in cut if item is not None]


def part_of(crop: Region, region: Region) -> Region:
    """A region in [0, 1] of a crop, in [0, 1] of the picture."""
    x0, y0, x1, y1 = crop
    width, height = x1 - x0, y1 - y0
    return x0 + region[0] * width, y0 + region[1] * height, x0 + region[2] * width, y0 + region[3] * height


def mirrored(region: Region) -> Region:
    """The same region in the mirrored picture."""
    return 1 - region[2], region[1], 1 - region[0], region[3]


def check_region(region: Region, what: str) -> None:
    """Refuse a region that is not finite, empty or not on the picture, calling it ``what``.

    Raises:
        ValueError: with the reason.
    """
    _check_on_picture(region, what)
    x0, y0, x1, y1 = region
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{what} needs x0 < x1 and y0 < y1, got (x0, y0, x1, y1) = {tuple(region)}")


def _check_on_picture(values: Sequence[float], what: str) -> None:
    if not all(-SLACK <= value <= 1 + SLACK for value in values):
        raise ValueError(
            f"{what} needs coordinates in [0, 1] of the picture, got {tuple(values)}: divide pixels by width and height"
        )


def _check_flags(flags: Iterable[str]) -> None:
    unknown = [flag for flag in flags if flag not in FLAGS]
    if unknown:
        raise ValueError(f"the flags of an object are {list(FLAGS)}, got {unknown}")


def _into(place: Place, crop: Region) -> Place:
    """Picture to crop coordinates, clamped to the crop."""
    x0, y0, x1, y1 = crop
    return min(max((place[0] - x0) / (x1 - x0), 0.0), 1.0), min(max((place[1] - y0) / (y1 - y0), 0.0), 1.0)
