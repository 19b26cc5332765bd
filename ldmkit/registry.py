"""The table of named components: list, describe, build and register them.

``(kind, name, distribution) -> factory``. Plug-ins are discovered once, on the first question and never at import,
each on its own (:mod:`ldmkit.discovery`); a broken one is kept with its reason in :func:`plugins`. Factories are
imported only to be described or built, so listing imports no torch and nothing of a plug-in but its light module.

The functions below share one :class:`Registry`; a fresh instance discovers again.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

from ldmkit.component import KINDS, Component, Description, Factory, Origin, did_you_mean, origin, quoted
from ldmkit.discovery import (
    PLUGIN_API,
    PluginInfo,
    Register,
    Table,
    check,
    hookimpl,
    load_all,
    normalised,
    refuse_reserved,
)
from ldmkit.errors import AmbiguousComponentError, LdmkitPluginWarning, OptionError, PluginError, UnknownComponentError
from ldmkit.parts import Part

__all__ = [
    "KINDS",
    "LOCAL",
    "PLUGIN_API",
    "Component",
    "Description",
    "Factory",
    "Origin",
    "PluginInfo",
    "Register",
    "Registry",
    "build",
    "build_part",
    "components",
    "describe",
    "find",
    "hookimpl",
    "names",
    "origin",
    "plugins",
    "register",
]

LOCAL = "<local>"


class Registry:
    """One table with its own discovery.

    Every method may be called from any thread. The lock is held to discover and to look up, never while a component
    is imported or built.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._table: Table = {}
        self._plugins: tuple[PluginInfo, ...] = ()
        self._discovering = False

    def names(self, kind: str) -> list[str]:
        """As the function :func:`names`."""
        return list(self.components(kind))

    def components(self, kind: str) -> dict[str, Component]:
        """As the function :func:`components`."""
        known = self._of_kind(kind)
        short = [component.name for component in known]
        labelled = {c.name if short.count(c.name) == 1 else c.qualified: c for c in known}
        return dict(sorted(labelled.items()))

    def describe(self, kind: str, name: str) -> Description:
        """As the function :func:`describe`."""
        return self._find(kind, name).describe()

    def build(self, kind: str, name: str, /, **options: Any) -> Any:  # noqa: ANN401
        """As the function :func:`build`."""
        return self._find(kind, name).build(options)

    def build_part(self, kind: str, part: Part) -> Any:  # noqa: ANN401
        """As the function :func:`build_part`."""
        if part.kind not in (None, kind):
            raise OptionError(f"part '{part.name}' is a {part.kind}, but a {kind} is wanted here")
        options = {key: self._with_parts_built(value) for key, value in part.options.items()}
        return self._find(kind, part.name).build(options)

    def register(self, kind: str, name: str, factory: Factory, *, replace: bool = False) -> None:
        """As the function :func:`register`."""
        component = Component(kind, name, factory, LOCAL, "")
        check(component)
        with self._lock:
            self._discover()
            refuse_reserved(component, self._table)
            old = self._table.get((kind, name, LOCAL))
            same = old is not None and old.path == component.path and "<lambda>" not in component.path
            if old is not None and not same and not replace:
                raise PluginError(
                    f"{kind} '{name}' is registered here as '{old.path}', which '{component.path}' would replace: "
                    "pass replace=True or choose another name"
                )
            self._table[kind, name, LOCAL] = component

    def plugins(self) -> list[PluginInfo]:
        """As the function :func:`plugins`."""
        self._discover()
        return list(self._plugins)

    def find(self, kind: str, cls: type) -> list[str]:
        """As the function :func:`find`."""
        return sorted(component.qualified for component in self._of_kind(kind) if component.makes(cls))

    def _discover(self) -> None:
        """Load every plug-in, once: the first caller pays, and the others wait for it."""
        with self._lock:
            if self._plugins:  # the built-ins make one, so empty means not yet
                return
            if self._discovering:
                raise PluginError(
                    "a plug-in asked the registry while plug-ins load: the module of an entry point may only offer "
                    "components, inside ldmkit_register(register)"
                )
            self._discovering = True
            try:
                self._table, self._plugins = load_all()
            finally:
                self._discovering = False
        for info in self._plugins:
            if info.status == "failed":
                text = f"plug-in {info} is skipped: {info.error}; LDMKIT_STRICT=1 raises instead, with the traceback"
                warnings.warn(text, LdmkitPluginWarning, stacklevel=2)

    def _of_kind(self, kind: str) -> list[Component]:
        if kind not in KINDS:
            near = did_you_mean(kind, KINDS)
            raise UnknownComponentError(f"unknown kind '{kind}'{near}; the kinds are {quoted(KINDS)}")
        with self._lock:
            self._discover()
            return [component for component in self._table.values() if component.kind == kind]

    def _find(self, kind: str, name: str) -> Component:
        short, _, owner = name.partition("@")
        offers = [component for component in self._of_kind(kind) if component.name == short]
        found = [component for component in offers if not owner or component.distribution == normalised(owner)]
        if not found:
            raise UnknownComponentError(self._unknown(kind, name, offers))
        if len(found) > 1:
            choices = " or ".join(sorted(f"'{component.qualified}'" for component in found))
            raise AmbiguousComponentError(f"{len(found)} distributions offer {kind} '{name}': ask for {choices}")
        return found[0]

    def _unknown(self, kind: str, name: str, offers: list[Component]) -> str:
        """The message for a name nobody offers: what is near, what there is, and what may be missing."""
        short, _, owner = name.partition("@")
        known = self.components(kind)
        elsewhere = f"; there is {quoted(sorted(component.qualified for component in offers))}"
        near = elsewhere if offers else did_you_mean(short, {component.name for component in known.values()})
        message = f"unknown {kind} '{name}'{near}{self._absent(owner)}; the names are {quoted(known) or '(none)'}"
        for status in ("failed", "disabled"):
            without = ", ".join(f"{info}: {info.error}" for info in self._plugins if info.status == status)
            message += f"; {status} plug-ins, whose components are missing: {without}" if without else ""
        return message

    def _absent(self, owner: str) -> str:
        if owner == LOCAL:
            return "; it was registered by hand: call ldmkit.register first"
        if owner and not any(info.distribution == normalised(owner) for info in self._plugins):
            return f"; no plug-in of distribution '{owner}' is installed"
        return ""

    def _with_parts_built(self, value: object) -> object:
        """An option's value, with the parts inside it built."""
        match value:
            case Part(kind=None):
                raise OptionError(f"nested part '{value.name}' does not say its kind: Part(name, options, kind=...)")
            case Part(kind=str(kind)):
                return self.build_part(kind, value)
            case list():
                return [self._with_parts_built(item) for item in value]
            case dict():
                return {key: self._with_parts_built(item) for key, item in value.items()}
            case _:
                return value


_SHARED = Registry()


def names(kind: str) -> list[str]:
    """The names of a kind, sorted; each can be built.

    A name that several distributions offer is listed once for each, as ``name@distribution``.

    Raises:
        UnknownComponentError: no such kind.
    """
    return _SHARED.names(kind)


def components(kind: str) -> dict[str, Component]:
    """The entries of the table by the names that :func:`names` lists; imports no factory.

    Raises:
        UnknownComponentError: no such kind.
    """
    return _SHARED.components(kind)


def describe(kind: str, name: str) -> Description:
    """Signature, summary, source and owner of one component; ``print`` it. Imports that component only.

    Raises:
        UnknownComponentError: no such kind or name.
        AmbiguousComponentError: several distributions offer the name.
        FactoryError: the component cannot be imported.
    """
    return _SHARED.describe(kind, name)


def build(kind: str, name: str, /, **options: Any) -> Any:  # noqa: ANN401 - the kind decides the type
    """Build a component by name.

    The options are bound to the factory's signature first. What the factory raises for bad values passes unchanged,
    with a note that names the component.

    Args:
        kind: one of ``KINDS``.
        name: ``name``, or ``name@distribution``, which is never ambiguous.
        **options: the keywords of the factory; :func:`describe` shows them.

    Returns:
        What the factory returns; :func:`origin` tells who made it.

    Raises:
        UnknownComponentError: no such kind or name; the message lists near names and the plug-ins that failed.
        AmbiguousComponentError: several distributions offer the name.
        FactoryError: the component cannot be imported.
        OptionError: an option the factory does not take, or a required one that is missing.
    """
    return _SHARED.build(kind, name, **options)


def build_part(kind: str, part: Part) -> Any:  # noqa: ANN401 - the kind decides the type
    """Build the parts inside a part's options, then the part.

    Raises:
        OptionError: the part is of another kind, or a nested part does not say its kind.
        LdmkitError: as :func:`build`.
    """
    return _SHARED.build_part(kind, part)


def register(kind: str, name: str, factory: Factory, *, replace: bool = False) -> None:
    """Register a component for this process, from a notebook or a script; its distribution is ``<local>``.

    Running the same cell again replaces the factory (same module and qualified name). Any other factory under a name
    that was registered here needs ``replace=True``.

    Raises:
        ReservedNameError: a built-in component has the name.
        PluginError: an unknown kind, a malformed name or factory, or a name registered before.
    """
    _SHARED.register(kind, name, factory, replace=replace)


def plugins() -> list[PluginInfo]:
    """Every plug-in that was found, the built-ins first: what it offers, or why it offers nothing."""
    return _SHARED.plugins()


def find(kind: str, cls: type) -> list[str]:
    """The qualified names whose factory is this class; nothing is imported or built.

    Raises:
        UnknownComponentError: no such kind.
    """
    return _SHARED.find(kind, cls)
