"""One entry of the registry's table: (kind, name, distribution) -> factory, and what can be done with it.

A factory is any callable whose keywords are the component's options, or the lazy string ``"module:attribute"`` that
is imported only when the component is described or built. Nothing here knows other components.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ldmkit.errors import FactoryError, LdmkitError, OptionError
from ldmkit.parts import Part

KINDS = ("first-stage", "backbone", "conditioner", "process", "sampler", "guidance", "task", "recipe")

Factory: TypeAlias = Callable[..., Any] | str

_ORIGIN = "_ldmkit_origin"


@dataclass(frozen=True)
class Component:
    """One entry of the table; making one imports nothing."""

    kind: str
    name: str
    factory: Factory
    distribution: str
    version: str

    @property
    def qualified(self) -> str:
        """``name@distribution``: what files record, and never ambiguous."""
        return f"{self.name}@{self.distribution}"

    @property
    def path(self) -> str:
        """Where the factory lives, as ``module:attribute``."""
        return self.factory if isinstance(self.factory, str) else _path_of(self.factory)

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' ({owned_by(self.distribution, self.version)})"

    def load(self) -> Callable[..., Any]:
        """The factory itself, imported if it is lazy.

        Raises:
            FactoryError: its import fails, or what it names cannot be called.
        """
        if not isinstance(self.factory, str):
            return self.factory
        module, _, attribute = self.factory.partition(":")
        try:
            found: object = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        except (Exception, SystemExit) as error:
            raise FactoryError(f"{self} cannot be imported from '{self.factory}': {reason(error)}") from error
        if not callable(found):
            raise FactoryError(f"{self}: '{self.factory}' is {type(found).__name__}, which cannot be called")
        return found

    def makes(self, cls: type) -> bool:
        """Whether the factory is ``cls``, told by its path and without importing it."""
        if self.path == _path_of(cls):
            return True
        module, _, attribute = self.path.partition(":")  # a package may offer a class under a shorter path
        return module in sys.modules and vars(sys.modules[module]).get(attribute) is cls

    def describe(self) -> Description:
        """What its factory takes and where it comes from."""
        factory = self.load()
        file, line = _source(factory)
        return Description(
            kind=self.kind,
            name=self.name,
            signature=str(_signature(factory)),
            summary=inspect.cleandoc(factory.__doc__ or "").partition("\n")[0],
            file=file,
            line=line,
            distribution=self.distribution,
            version=self.version,
            factory=self.path,
        )

    def build(self, options: Mapping[str, Any]) -> object:
        """Bind the options, call the factory, and record the origin on what it returns."""
        factory = self.load()
        self._check(_signature(factory), options)
        try:
            built: object = factory(**options)
        except Exception as error:
            error.add_note(f"while building {self}")
            raise
        with contextlib.suppress(AttributeError, TypeError):  # an object with __slots__ has nowhere to remember it
            object.__setattr__(built, _ORIGIN, self._origin(options))
        return built

    def _check(self, signature: inspect.Signature, options: Mapping[str, Any]) -> None:
        """Refuse options that do not bind, before anything runs."""
        takes = signature.parameters.values()
        named = {p.name: p for p in takes if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        unknown = [key for key in options if key not in named]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in takes):
            near = did_you_mean(unknown[0], named)
            raise OptionError(f"unknown option {quoted(unknown)} for {self}; it takes {signature}{near}")
        missing = [key for key, p in named.items() if p.default is p.empty and key not in options]
        if missing:
            give = ", ".join(f"{key}=..." for key in missing)
            raise OptionError(f"missing option {quoted(missing)} for {self}: give {give}")

    def _origin(self, options: Mapping[str, Any]) -> Origin:
        try:
            part = Part(self.qualified, _as_parts(dict(options)), kind=self.kind)
        except (TypeError, ValueError):
            part = None
        return Origin(self.kind, self.name, self.distribution, self.version, part)


@dataclass(frozen=True)
class Description:
    """What a user needs to build one component: its options, purpose, source and owner."""

    kind: str
    name: str
    signature: str
    summary: str
    file: str | None
    line: int | None
    distribution: str
    version: str
    factory: str

    def __str__(self) -> str:
        source = "unknown" if self.file is None else f"{self.file}:{self.line}"
        lines = (
            f"{self.kind} '{self.name}' ({owned_by(self.distribution, self.version)})",
            f"  {self.summary or '(no docstring)'}",
            textwrap.fill(f"  takes    {self.signature}", 110, subsequent_indent=" " * 12, break_on_hyphens=False),
            f"  factory  {self.factory}",
            f"  source   {source}",
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Origin:
    """Who made an object: recorded on what the registry builds.

    ``part`` rebuilds it: the qualified name and the options as given, where objects that were themselves built stand
    as their own parts. None where some option is neither plain data nor such an object.
    """

    kind: str
    name: str
    distribution: str
    version: str
    part: Part | None

    @property
    def qualified(self) -> str:
        """``name@distribution``."""
        return f"{self.name}@{self.distribution}"


def origin(built: object) -> Origin | None:
    """Who made an object that the registry built; its copies and pickles remember too.

    None for other objects, and for those that cannot hold an attribute (``__slots__``).
    """
    # Not getattr: a wrapper that forwards attributes is not what it wraps.
    found = getattr(built, "__dict__", {}).get(_ORIGIN)
    return found if isinstance(found, Origin) else None


def owned_by(distribution: str, version: str) -> str:
    """``ldmkit-depth 0.1``; a local component has no version."""
    return f"{distribution} {version}".strip()


def quoted(words: Iterable[str]) -> str:
    """``'a', 'b'`` for messages, in the order given."""
    return ", ".join(f"'{word}'" for word in words)


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of a message that points to the nearest of ``words``; empty when none is near."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def reason(error: BaseException) -> str:
    """An exception as one line, even one that cannot be printed."""
    if isinstance(error, LdmkitError):
        return str(error)
    return " ".join(" ".join(traceback.format_exception_only(error)).split())


def _path_of(factory: Callable[..., Any]) -> str:
    """``module:qualname`` of a class or function; a callable object is told apart by its address."""
    if inspect.isclass(factory) or inspect.isroutine(factory):
        return f"{factory.__module__}:{factory.__qualname__}"
    return f"{type(factory).__module__}:{type(factory).__qualname__} object at {id(factory):#x}"


def _as_parts(value: Any) -> Any:  # noqa: ANN401 - any option
    """``value`` with every object that the registry built replaced by its part."""
    made = origin(value)
    if made is not None and made.part is not None:
        return made.part
    match value:
        case list() | tuple():
            return [_as_parts(item) for item in value]
        case dict():
            return {key: _as_parts(item) for key, item in value.items()}
        case _:
            return value


class _Written(str):
    """An annotation, shown as its author wrote it rather than as a quoted string."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    """What a factory takes."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (NameError, TypeError, ValueError):  # nothing to read: the factory itself must judge its options
        return inspect.Signature([inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)])
    return inspect.Signature(
        [p.replace(annotation=_Written(p.annotation)) if isinstance(p.annotation, str) else p for p in parameters]
    )


def _source(factory: Callable[..., Any]) -> tuple[str | None, int | None]:
    try:
        return inspect.getsourcefile(factory), inspect.getsourcelines(factory)[1]
    except (OSError, TypeError):
        return None, None
