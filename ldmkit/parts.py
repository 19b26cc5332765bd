"""Compositions as plain data: a :class:`Part` is one component by name with its options.

A part holds only what JSON holds (and further parts), so it can be written into a file, compared and rebuilt anywhere
the component is installed. Nothing here imports torch or builds anything: ``ldmkit.registry.build_part`` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias, Union

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion

Value: TypeAlias = Union[bool, int, float, str, "Part", list["Value"], dict[str, "Value"], None]
_Path: TypeAlias = tuple[str | int, ...]

# Far above any composition; a cycle or a hostile file ends here and not in a RecursionError.
_DEPTH = 32


@dataclass(frozen=True)
class Part:
    """One component by name, with the options it is built with.

    The options are copied and normalised when the part is made: tuples become lists, so that a part equals what its
    own JSON gives back.

    Args:
        name: the registry name, ``name`` or ``name@distribution``.
        options: keyword -> None, bool, int, finite float, str, a nested :class:`Part`, or lists and mappings of these.
        kind: the registry kind; needed where the part stands inside another part's options.

    Raises:
        TypeError: a value of another type, or a key that is not a string; the message names its path.
        ValueError: an empty name, a non-finite float, a plain mapping with the key ``part`` (its JSON would read as a
            part), or nesting deeper than 32; the message names its path.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a part needs the name of a component, got {self.name!r}")
        if not isinstance(self.options, Mapping):
            raise TypeError(f"the options of part '{self.name}' must be a mapping, got {type(self.options).__name__}")
        object.__setattr__(self, "options", _mapping(self.options, (self.name,)))

    def to_json(self) -> dict[str, Any]:
        """The part as ``{"part": name, "options": {...}}``, with ``"kind"`` where there is one; parts nest alike."""
        data: dict[str, Any] = {"part": self.name, "options": _to_json(dict(self.options))}
        return data if self.kind is None else {**data, "kind": self.kind}

    @classmethod
    def from_json(cls, data: Any) -> Part:  # noqa: ANN401 - what a JSON parser gives
        """The part that :meth:`to_json` wrote.

        Raises:
            ValueError: ``data`` is not a mapping with ``part`` (a string), ``options`` (a mapping; may be absent) and
                ``kind`` (a string; may be absent), or has other keys.
        """
        return _part(data, ())


def _value(value: object, path: _Path) -> Value:
    """``value`` as plain data, or an error that names the path."""
    match value:
        case None | bool() | Part():
            return value
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{_where(path)} is {value}, which JSON cannot hold")
            return float(value)
        case str():
            return str.__str__(value)
        case list() | tuple():
            return [_value(item, _deeper(path, index)) for index, item in enumerate(value)]
        case Mapping():
            if "part" in value:
                raise ValueError(f"{_where(path)} is a mapping with the key 'part': make it a Part, or rename the key")
            return _mapping(value, path)
        case _:
            raise TypeError(
                f"{_where(path)} is {type(value).__name__}; a part holds None, bool, int, float, str, lists, mappings "
                "and parts only: pass plain data and build the object inside the component"
            )


def _mapping(value: Mapping[Any, object], path: _Path) -> dict[str, Value]:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{_where(path)} has the key {key!r}; keys are strings")
    return {key: _value(item, _deeper(path, key)) for key, item in value.items()}


def _to_json(value: Value) -> Any:  # noqa: ANN401 - a JSON value
    match value:
        case Part():
            return value.to_json()
        case list():
            return [_to_json(item) for item in value]
        case dict():
            return {key: _to_json(item) for key, item in value.items()}
        case _:
            return value


def _from_json(value: Any, path: _Path) -> Any:  # noqa: ANN401 - a JSON value, with parts made of their mappings
    match value:
        case {"part": _}:
            return _part(value, path)
        case list():
            return [_from_json(item, _deeper(path, index)) for index, item in enumerate(value)]
        case dict():
            return {key: _from_json(item, _deeper(path, key)) for key, item in value.items()}
        case _:
            return value


def _part(data: Any, path: _Path) -> Part:  # noqa: ANN401 - what a JSON parser gives
    match data:
        case {"part": str(name), **rest} if name and rest.keys() <= {"options", "kind"}:
            options, kind = rest.get("options", {}), rest.get("kind")
        case _:
            raise ValueError(
                f"{_where(path)} is no part: it needs 'part' and may have 'options' and 'kind'; got {data!r:.80}"
            )
    if not isinstance(options, dict) or not isinstance(kind, str | None):
        raise ValueError(
            f"{_where((*path, name))} needs a mapping as 'options' and a string as 'kind'; got {data!r:.80}"
        )
    return Part(name, {key: _from_json(item, _deeper((*path, name), key)) for key, item in options.items()}, kind)


def _deeper(path: _Path, key: str | int) -> _Path:
    if len(path) >= _DEPTH:
        raise ValueError(f"{_where(path)} is nested deeper than {_DEPTH} levels")
    return (*path, key)


def _where(path: _Path) -> str:
    """``('unet', 'levels', 2, 'scale')`` as ``part 'unet': levels[2].scale``."""
    if not path:
        return "the given data"
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path[1:]).lstrip(".")
    return f"part '{path[0]}': {steps or 'its options'}"


@dataclass(frozen=True)
class Source:
    """One named conditioner of a recipe, with its two rules.

    Args:
        part: the conditioner.
        drop: the share of training samples in which it is replaced by its null, in [0, 1].
        guided: whether guidance drops it in the unconditional half.
    """

    part: Part
    drop: float = 0.0
    guided: bool = True

    def to_json(self) -> dict[str, Any]:
        """The source as a mapping."""
        return {**self.part.to_json(), "drop": self.drop, "guided": self.guided}

    @classmethod
    def from_json(cls, data: Any) -> Source:  # noqa: ANN401 - what a JSON parser gives
        """The source that :meth:`to_json` wrote.

        Raises:
            ValueError: ``data`` is not such a mapping.
        """
        match data:
            case {"drop": float() | int() as drop, "guided": bool(guided), **part}:
                return cls(Part.from_json(part), float(drop), guided)
        raise ValueError(f"a source needs a part, 'drop' (a number) and 'guided' (true or false); got {data!r:.80}")


def _named_source(data: Any) -> tuple[str, Source]:  # noqa: ANN401 - what a JSON parser gives
    match data:
        case {"name": str(name), **source}:
            return name, Source.from_json(source)
    raise ValueError(f"a source needs a 'name'; got {data!r:.80}")


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a model is composed, as plain data: a part per slot and the named sources in their order.

    Args:
        first_stage: images to latents and back.
        backbone: the raw network.
        process: the forward process it is trained on.
        prediction: ``eps``, ``v``, ``x0`` or ``flow``.
        sources: name -> conditioner with its dropout rate and guidance rule.
        objective: keywords of the denoising loss.
        notes: plain data that travels with the recipe: where it came from, class names, sampling defaults.
    """

    first_stage: Part
    backbone: Part
    process: Part
    prediction: str = "eps"
    sources: Mapping[str, Source] = field(default_factory=dict)
    objective: Mapping[str, Value] = field(default_factory=dict)
    notes: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", dict(self.sources))
        object.__setattr__(self, "objective", _mapping(self.objective, ("objective",)))
        object.__setattr__(self, "notes", _mapping(self.notes, ("notes",)))

    def to_json(self) -> dict[str, Any]:
        """The recipe as a mapping of plain data."""
        return {
            "first_stage": self.first_stage.to_json(),
            "backbone": self.backbone.to_json(),
            "process": self.process.to_json(),
            "prediction": self.prediction,
            "sources": [{"name": name, **source.to_json()} for name, source in self.sources.items()],
            "objective": _to_json(dict(self.objective)),
            "notes": _to_json(dict(self.notes)),
        }

    @classmethod
    def from_json(cls, data: Any) -> Recipe:  # noqa: ANN401 - what a JSON parser gives
        """The recipe that :meth:`to_json` wrote.

        Raises:
            ValueError: a key is missing or unknown, or a value is not what it should be.
        """
        keys = {"first_stage", "backbone", "process", "prediction", "sources", "objective", "notes"}
        if not isinstance(data, dict) or data.keys() != keys:
            given = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"a recipe has the keys {sorted(keys)}, got {given}")
        if not isinstance(data["prediction"], str) or not isinstance(data["sources"], list):
            raise ValueError("a recipe's prediction is a string and its sources are a list")
        if not all(isinstance(data[key], dict) for key in ("objective", "notes")):
            raise ValueError("a recipe's objective and notes are mappings")
        return cls(
            first_stage=Part.from_json(data["first_stage"]),
            backbone=Part.from_json(data["backbone"]),
            process=Part.from_json(data["process"]),
            prediction=data["prediction"],
            sources=dict(_named_source(source) for source in data["sources"]),
            objective=data["objective"],
            notes=data["notes"],
        )

    def __eq__(self, other: object) -> bool:
        """By value, with the sources in the same order: it decides the layout of tokens and channels."""
        return isinstance(other, Recipe) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it holds mappings

    def with_notes(self, notes: Mapping[str, Value]) -> Recipe:
        """The same composition with other notes."""
        return replace(self, notes=notes)

    def build(self) -> LatentDiffusion:
        """Build every part by name and compose the model, with fresh weights: see :func:`ldmkit.compose`.

        Raises:
            UnknownComponentError: a part is not installed; the message lists the plug-ins that failed.
            CompositionError: the parts do not fit.
        """
        model: LatentDiffusion = import_module("ldmkit.model").compose(self)
        return model

    def parts(self) -> list[tuple[str, Part]]:
        """(kind, part) of everything it needs."""
        fixed = [("first-stage", self.first_stage), ("backbone", self.backbone), ("process", self.process)]
        return [*fixed, *(("conditioner", source.part) for source in self.sources.values())]
