"""How parts fit together: the checks when a model is composed, the table it prints, and its recipe.

Nothing here runs a network. :mod:`ldmkit.model` calls the checks; messages name both parts and the fix.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ldmkit.conditioning import SLOTS, Conditioner, Joint
from ldmkit.denoiser import Backbone, DenoisingLoss
from ldmkit.errors import CompositionError
from ldmkit.guidance import Guidance
from ldmkit.parts import Part, Recipe, Source
from ldmkit.process import Levels, Process
from ldmkit.registry import KINDS, find, origin
from ldmkit.samplers.contract import Checking, Sampler


@runtime_checkable
class FirstStage(Protocol):
    """Images to latents and back. ``factor``: image pixels per latent cell; ``channels``: of the latent."""

    factor: int
    channels: int
    image_channels: int

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] to scaled latents (B, c, H/f, W/f): the mode, or a posterior draw with ``noise``."""

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents to images in [-1, 1], not clamped."""


@runtime_checkable
class Downsampling(Protocol):
    """A conditioner whose concat is smaller than the image by ``factor``, which must be the first stage's."""

    factor: int


@runtime_checkable
class Filled(Protocol):
    """A component that can be read from elsewhere when it is built: a file, a folder, a hub.

    ``filled_by`` names the constructor keywords that say where. They are never written down: what was read is in the
    tensors, in ``get_extra_state`` and in the component's other keywords, whose attributes say what was found, so that
    it can be built again without the place it came from.
    """

    filled_by: tuple[str, ...]


def label_of(component: object) -> str:
    """How a message names a component: the name it was built by, else its class."""
    built = origin(component)
    return type(component).__name__ if built is None else f"'{built.name}'"


_KEYWORD = {"context": "context_dim", "vector": "vector_dim", "label": "num_classes", "concat": "concat_channels"}
_UNIT = {"context": "width", "vector": "width", "label": "classes", "concat": "channels"}


def check_composition(first_stage: FirstStage, backbone: Backbone, conditioner: Joint | None) -> None:
    """Refuse parts that do not fit each other.

    Raises:
        TypeError: the first stage is not one.
        CompositionError: latent channels, a slot, a size or a downsampling factor does not match.
    """
    if not isinstance(first_stage, nn.Module) or not isinstance(first_stage, FirstStage):
        raise TypeError(
            f"{type(first_stage).__name__} is not a first stage: an nn.Module with factor, channels, image_channels, "
            "encode and decode"
        )
    if first_stage.channels != backbone.channels:
        raise CompositionError(
            f"first stage {label_of(first_stage)} gives latents of {first_stage.channels} channels; backbone "
            f"{label_of(backbone)} expects {backbone.channels}: build the backbone with "
            f"channels={first_stage.channels}"
        )
    sources: Mapping[str, Conditioner] = {} if conditioner is None else conditioner.conditioners()
    provides: Mapping[str, int] = {} if conditioner is None else conditioner.provides
    for slot in SLOTS:
        _check_slot(slot, provides.get(slot), backbone, sources)
    for name, source in sources.items():
        if "concat" in source.provides and isinstance(source, Downsampling) and source.factor != first_stage.factor:
            raise CompositionError(
                f"source '{name}' ({label_of(source)}) shrinks the image by {source.factor}; first stage "
                f"{label_of(first_stage)} by {first_stage.factor}: build the conditioner for factor "
                f"{first_stage.factor}"
            )


def check_objective(objective: DenoisingLoss, process: Process) -> None:
    """Refuse a log-variance per time that is not one per time of the process.

    Raises:
        CompositionError: the numbers differ, or the process has no table of times.
    """
    if objective.times is not None and objective.times != process.table:
        raise CompositionError(
            f"the objective has a log-variance for {objective.times} times; process {_brief(process)} has "
            f"{process.table or 'no table of times'}: build DenoisingLoss with times=process.table"
        )


def check_call(sampler: object, guidance: object, levels: object, temperature: float) -> None:
    """Refuse what is no sampler, guidance or list of levels, and what this sampler cannot honour.

    Raises:
        TypeError: something is not what its argument needs.
        ValueError: a negative temperature, one that a deterministic sampler would ignore, or what the sampler's own
            ``check(levels)`` refuses.
    """
    for value, protocol, kind in ((sampler, Sampler, "sampler"), (guidance, Guidance, "guidance")):
        if not isinstance(value, protocol):
            raise TypeError(f"{value!r} is not a {kind}: ldmkit.build('{kind}', name) builds one")
    if not isinstance(levels, Levels):
        raise TypeError(f"levels must be a number of steps or Levels, got {levels!r}")
    if temperature < 0:
        raise ValueError(f"noise temperature must be at least 0, got {temperature}")
    if isinstance(sampler, Checking):
        if temperature != 1 and not sampler.stochastic:
            raise ValueError(f"{sampler} draws no noise, so that temperature={temperature} would be ignored")
        sampler.check(levels)


def _check_slot(slot: str, given: int | None, backbone: Backbone, sources: Mapping[str, Conditioner]) -> None:
    read = backbone.accepts.get(slot)
    if given == read:
        return
    who = f"backbone {label_of(backbone)}"
    if given is None:
        raise CompositionError(
            f"{who} reads {slot} of {_UNIT[slot]} {read}, which no conditioner provides: add a conditioner for it, or "
            f"build the backbone without {_KEYWORD[slot]}"
        )
    givers = [f"'{name}' ({label_of(s)})" for name, s in sources.items() if slot in s.provides]
    expects = f"expects {read}" if read is not None else f"reads no {slot}"
    raise CompositionError(
        f"conditioner {' + '.join(givers)} gives {slot} of {_UNIT[slot]} {given}; {who} {expects}: build the backbone "
        f"with {_KEYWORD[slot]}={given}, or choose another conditioner"
    )


def composition_table(
    first_stage: FirstStage, backbone: Backbone, process: Process, prediction: str, conditioner: Joint | None
) -> str:
    """The composition as text: slot, component, shapes, parameters and owner of every part."""
    sides = "H x W" if first_stage.factor == 1 else f"H/{first_stage.factor} x W/{first_stage.factor}"
    reads = ", ".join(f"{slot} {size}" for slot, size in backbone.accepts.items()) or "no conditioning"
    image = f"{first_stage.image_channels} x H x W <-> {first_stage.channels} x {sides}"
    rows = [
        ("first stage", first_stage, image),
        ("backbone", backbone, f"{backbone.channels} channels, sides x{backbone.multiple}; reads {reads}"),
        *([] if conditioner is None else [_source_row(conditioner, name) for name in conditioner.sources]),
        ("process", process, _brief(process)),
    ]
    table = [("slot", "component", "shapes", "parameters", "owner")]
    table += [(slot, _name(part), shapes, _parameters(part), _owner(part)) for slot, part, shapes in rows]
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join([*lines, f"predicts {prediction}"])


def _brief(process: object) -> str:
    """A process without the options that have their default value."""
    if not is_dataclass(process):
        return str(process)
    own = {field.name: (getattr(process, field.name), field.default) for field in fields(process)}
    said = ", ".join(f"{name}={value!r}" for name, (value, default) in own.items() if value != default)
    return f"{type(process).__name__}({said})"


def _source_row(conditioner: Joint, name: str) -> tuple[str, object, str]:
    source = conditioner.conditioners()[name]
    gives = ", ".join(f"{slot} {size}" for slot, size in source.provides.items())
    rule = "guided" if name in conditioner.guided else "kept by guidance"
    shapes = f"{', '.join(source.reads)} -> {gives}; dropped {conditioner.drop[name]:.0%}, {rule}"
    return f"source {name}", source, shapes


def _name(part: object) -> str:
    built = origin(part)
    return type(part).__name__ if built is None else built.name


def _owner(part: object) -> str:
    built = origin(part)
    return type(part).__module__ if built is None else f"{built.distribution} {built.version}"


def _parameters(part: object) -> str:
    return f"{sum(p.numel() for p in part.parameters()):,}" if isinstance(part, nn.Module) else ""


def part_of(kind: str, component: object) -> Part:
    """The part that builds a component again: its registered name, and its constructor keywords as attributes.

    The keywords that a :class:`Filled` component was read by are left out.

    Raises:
        CompositionError: its class is not registered, a keyword is not an attribute of the same name, or the component
            no longer is what it was built as; the message says what to do.
    """
    built, cls = origin(component), type(component)
    if built is not None:
        name = built.name if built.distribution == "ldmkit" else f"{built.name}@{built.distribution}"
    else:
        name = _registered_name(kind, cls)
    given = {} if built is None or built.part is None else built.part.options
    if built is not None and built.part is not None and not _makes(kind, built.qualified, cls):
        return Part(name, built.part.options)  # a function built it: its options are the only ones there are
    fills = component.filled_by if isinstance(component, Filled) else ()
    options = {}
    for keyword, parameter in _keywords(cls).items():
        if keyword in fills:
            continue
        value = _attribute(kind, component, keyword)
        if isinstance(value, Tensor):  # state, whose value travels as a tensor; the keyword was where it began
            value = given.get(keyword, parameter.default)
        if not _is_default(value, parameter.default):
            options[keyword] = _nested(value)
    part = Part(name, options)
    kept = {keyword: value for keyword, value in _kept(given, cls).items() if keyword not in fills}
    # What was read may have set the keywords that were not given; those that were given must still be true.
    read = any(given.get(keyword) is not None for keyword in fills)
    said = {keyword: value for keyword, value in part.options.items() if keyword in kept or not read}
    if built is not None and built.part is not None and kept != said:
        raise CompositionError(
            f"{kind} '{name}' was built with {kept} and now says {said}: a part changed by hand cannot be written "
            "down; build it with the options it should have"
        )
    return part


def _keywords(cls: type) -> Mapping[str, inspect.Parameter]:
    """What a class is built with; nothing for a module that leaves ``__init__`` to torch, which takes any arguments."""
    builder = next(owner for owner in cls.__mro__ if "__init__" in vars(owner))
    return {} if builder is nn.Module else inspect.signature(cls).parameters


def _nested(value: object) -> object:
    """A component among the options as a part of its own, with its kind; anything else as it is."""
    if value is None or isinstance(value, bool | int | float | str | list | tuple | Mapping):
        return value
    built = origin(value)
    kinds = [kind for kind in KINDS if find(kind, type(value))] if built is None else [built.kind]
    if len(kinds) != 1:
        return value
    part = part_of(kinds[0], value)
    if built is not None and built.part is not None:
        return built.part
    return Part(part.name if "@" in part.name else f"{part.name}@ldmkit", part.options, kinds[0])


def _said(component: object) -> dict[str, Any]:
    """Constructor keywords, read back from attributes of the same name, where they differ from their default."""
    keywords = inspect.signature(type(component)).parameters.items()
    values = {name: (getattr(component, name), parameter.default) for name, parameter in keywords}
    return {name: value for name, (value, default) in values.items() if not _is_default(value, default)}


def _kept(options: Mapping[str, object], cls: type) -> Mapping[str, object]:
    """The options that differ from the defaults, as :func:`part_of` keeps them."""
    defaults = {name: parameter.default for name, parameter in _keywords(cls).items()}
    kept = {name: value for name, value in options.items() if not _is_default(value, defaults.get(name))}
    return Part("kept", kept).options


def _is_default(value: object, default: object) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and tuple(value) == default
    return type(value) is type(default) and value == default


def _makes(kind: str, name: str, cls: type) -> bool:
    """Whether the registered factory is the class itself."""
    return name in find(kind, cls)


def _registered_name(kind: str, cls: type) -> str:
    found = find(kind, cls)
    if len(found) != 1:
        say = "is not registered" if not found else f"is registered as {found}"
        raise CompositionError(
            f"{kind} {cls.__module__}.{cls.__qualname__} {say}, so a file cannot name it: "
            f"ldmkit.register('{kind}', 'a-name', {cls.__name__}), or build it by name"
        )
    return found[0].removesuffix("@ldmkit")


def _attribute(kind: str, component: object, keyword: str) -> Any:  # noqa: ANN401
    try:
        return getattr(component, keyword)
    except AttributeError:
        raise CompositionError(
            f"{kind} {type(component).__name__} takes the keyword '{keyword}' and keeps no attribute of that name, so "
            "its options cannot be written down: store constructor keywords under their own names"
        ) from None


def recipe_of(
    first_stage: FirstStage,
    backbone: Backbone,
    process: Process,
    prediction: str,
    conditioner: Joint | None,
    objective: DenoisingLoss,
) -> Recipe:
    """The composition as plain data.

    Raises:
        CompositionError: a part cannot be written down; see :func:`part_of`.
    """
    sources = {}
    if conditioner is not None:
        for name, source in conditioner.conditioners().items():
            part = part_of("conditioner", source)
            sources[name] = Source(part, conditioner.drop[name], name in conditioner.guided)
    return Recipe(
        first_stage=part_of("first-stage", first_stage),
        backbone=part_of("backbone", backbone),
        process=part_of("process", process),
        prediction=prediction,
        sources=sources,
        objective=_said(objective),
    )
