"""How components enter the table: one hook, and every plug-in loaded on its own.

A distribution declares an entry point of the group ``ldmkit`` that names a light module with the hook::

    @ldmkit.hookimpl
    def ldmkit_register(register):
        register.conditioner("depth-map", "ldmkit_depth.depth:DepthMap")

The module may say which plug-in API it was written for, ``ldmkit_api = (1, 0)``; one that says nothing means that.
The built-ins come through the same hook. One plug-in's failure (at import, in its hook, in what it offers) costs its
own components and nothing else: what it offers is collected apart and enters the table whole or not at all.
Installing a plug-in is running its code: this isolation is against mistakes, not against malice.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import itertools
import operator
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pluggy

from ldmkit._version import __version__
from ldmkit.component import KINDS, Component, Factory, owned_by, quoted, reason
from ldmkit.errors import PluginError, PluginLoadError, ReservedNameError

GROUP = "ldmkit"
BUILTIN = "ldmkit"

PLUGIN_API = (1, 0)
"""The (major, minor) that plug-ins see: another major breaks them, a higher minor only adds to it."""

_FIRST_API = (1, 0)

Table: TypeAlias = dict[tuple[str, str, str], Component]

hookimpl = pluggy.HookimplMarker(GROUP)
_hookspec = pluggy.HookspecMarker(GROUP)


class Register:
    """Handed to a plug-in's hook: one method per kind.

    Names are lower-case words joined by hyphens. A factory is a callable or, better, a lazy ``"module:attribute"``:
    it is imported only when the component is built or described. Its keywords are the component's options.
    """

    def __init__(self, distribution: str, version: str) -> None:
        self.distribution = distribution
        self.version = version
        self.offered: dict[tuple[str, str], Component] = {}

    def first_stage(self, name: str, factory: Factory) -> None:
        """Offer a factory of first stages: images to latents and back."""
        self.add("first-stage", name, factory)

    def backbone(self, name: str, factory: Factory) -> None:
        """Offer a factory of backbones: the network that predicts."""
        self.add("backbone", name, factory)

    def conditioner(self, name: str, factory: Factory) -> None:
        """Offer a factory of conditioners: batch to Conditioning."""
        self.add("conditioner", name, factory)

    def process(self, name: str, factory: Factory) -> None:
        """Offer a factory of forward processes: t to (alpha, sigma)."""
        self.add("process", name, factory)

    def sampler(self, name: str, factory: Factory) -> None:
        """Offer a factory of samplers: noise to x0 along a list of levels."""
        self.add("sampler", name, factory)

    def guidance(self, name: str, factory: Factory) -> None:
        """Offer a factory of guidances: how cond and uncond become one denoiser."""
        self.add("guidance", name, factory)

    def task(self, name: str, factory: Factory) -> None:
        """Offer a factory of tasks: a user's inputs to a batch, and results back."""
        self.add("task", name, factory)

    def recipe(self, name: str, factory: Factory) -> None:
        """Offer a factory of recipes: a whole composition as plain data."""
        self.add("recipe", name, factory)

    def add(self, kind: str, name: str, factory: Factory) -> None:
        """Offer a component of the kind named; the methods above are this with the kind in their name.

        Raises:
            PluginError: an unknown kind, a malformed name or factory, or a name offered twice.
        """
        component = Component(kind, name, factory, self.distribution, self.version)
        check(component)
        if (kind, name) in self.offered:
            raise PluginError(f"{component} is offered twice: give each component its own name")
        self.offered[kind, name] = component


class HookSpec:
    """The hooks of ldmkit: one."""

    @_hookspec
    def ldmkit_register(self, register: Register) -> None:
        """Offer components by calling the methods of ``register``; import nothing heavy."""


@dataclass(frozen=True)
class PluginInfo:
    """What became of one entry point.

    ``components`` lists ``kind:name``; ``error`` says why the status is not ``ok``; ``seconds`` is what loading took.
    """

    distribution: str
    version: str
    entry_point: str
    status: Literal["ok", "failed", "disabled"]
    components: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        point = f" (entry point '{self.entry_point}')" if self.entry_point else ""
        return owned_by(self.distribution, self.version) + point


def load_all() -> tuple[Table, tuple[PluginInfo, ...]]:
    """Load the built-ins and every plug-in on ``sys.path``, each on its own.

    Reads ``LDMKIT_PLUGINS`` (only these distributions), ``LDMKIT_DISABLE`` (not these) and ``LDMKIT_STRICT``.

    Raises:
        PluginLoadError: a plug-in is broken and ``LDMKIT_STRICT=1``.
    """
    table: Table = {}
    return table, tuple(_load(candidate, table) for candidate in _candidates())


def check(component: Component) -> None:
    """Refuse a kind, name or factory that is malformed.

    Raises:
        PluginError: naming what is wrong.
    """
    kind, name, factory = component.kind, component.name, component.factory
    if kind not in KINDS:
        raise PluginError(f"unknown kind {kind!r} for component {name!r}; the kinds are {quoted(KINDS)}")
    if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)):
        raise PluginError(f"{kind} {name!r}: a name is lower-case words and digits joined by hyphens")
    if not callable(factory) and not (isinstance(factory, str) and re.fullmatch(r"[\w.]+:[\w.]+", factory)):
        raise PluginError(f"{component}: a factory is a callable or 'module:attribute', got {factory!r}")


def refuse_reserved(component: Component, table: Table) -> None:
    """Refuse the name of a built-in to everyone else.

    Raises:
        ReservedNameError: naming the component.
    """
    if (component.kind, component.name, BUILTIN) in table:
        raise ReservedNameError(f"{component} has the name of a built-in, which is reserved: choose another name")


def normalised(distribution: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@dataclass(frozen=True)
class _Candidate:
    """A plug-in before it is loaded."""

    distribution: str
    version: str
    entry_point: str
    load: Callable[[], object]


def _load(candidate: _Candidate, table: Table) -> PluginInfo:
    """Add what one plug-in offers to the table, all of it or nothing."""
    info = functools.partial(PluginInfo, candidate.distribution, candidate.version, candidate.entry_point)
    if why := _disabled(candidate.distribution):
        return info("disabled", error=why)
    start = time.perf_counter()
    try:
        offered = _offered(candidate)
        _refuse_taken(offered, table)
    except (Exception, SystemExit) as error:
        if os.environ.get("LDMKIT_STRICT", "0") not in ("", "0"):
            raise PluginLoadError(f"plug-in {info('failed')} does not load: {reason(error)}") from error
        return info("failed", error=reason(error), seconds=time.perf_counter() - start)
    table.update(offered)
    names = tuple(f"{kind}:{name}" for kind, name, _ in offered)
    return info("ok", components=names, seconds=time.perf_counter() - start)


def _offered(candidate: _Candidate) -> Table:
    """What one plug-in offers through its hook. A manager of its own keeps it apart from every other plug-in."""
    plugin = candidate.load()
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(HookSpec)
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as error:
        raise PluginError(f"its hook is not ldmkit_register(register): {reason(error)}") from error
    hooks = manager.get_hookcallers(plugin) or []
    if not hooks:
        raise PluginError("it has no function marked @ldmkit.hookimpl; the entry point names the module that holds it")
    unknown = [hook.name for hook in hooks if not hook.has_spec()]
    if unknown:
        raise PluginError(f"it implements an unknown hook {quoted(unknown)}; the hook is 'ldmkit_register'")
    register = Register(candidate.distribution, candidate.version)
    manager.hook.ldmkit_register(register=register)
    if not register.offered:
        raise PluginError("its ldmkit_register(register) offers no component")
    return {(c.kind, c.name, c.distribution): c for c in register.offered.values()}


def _refuse_taken(offered: Table, table: Table) -> None:
    for key, component in offered.items():
        if key in table:
            raise PluginError(f"another entry point of the same distribution offers {component} already")
        refuse_reserved(component, table)


def _candidates() -> list[_Candidate]:
    """The built-ins, then what the metadata on ``sys.path`` declare, sorted by (distribution, entry point)."""
    declared: dict[str, list[_Candidate]] = {}
    for distribution in importlib.metadata.distributions():
        if found := _declared_by(distribution):
            declared.setdefault(found[0].distribution, found)  # the first on the path is the one that imports
    # Loaded by name: ldmkit's own entry point is absent from a bare source tree, and may be there twice.
    declared.pop(BUILTIN, None)
    for absent in (_listed("LDMKIT_PLUGINS") or set()) - {*declared, BUILTIN}:
        message = "LDMKIT_PLUGINS names this distribution, and no plug-in of it is installed"
        declared[absent] = [_Candidate(absent, "", "", functools.partial(_refuse, message))]
    builtin = functools.partial(importlib.import_module, "ldmkit.builtin")
    plugins = itertools.chain.from_iterable(declared[distribution] for distribution in sorted(declared))
    return [_Candidate(BUILTIN, __version__, "builtin", builtin), *plugins]


def _declared_by(distribution: importlib.metadata.Distribution) -> list[_Candidate]:
    """One candidate per entry-point name of a distribution; nothing is imported."""
    try:
        points = sorted(distribution.entry_points.select(group=GROUP), key=operator.attrgetter("name"))
        if not points:
            return []
        owner = _identity(distribution)
    except Exception as error:
        refuse = functools.partial(_refuse, f"its metadata cannot be read: {reason(error)}")
        return [_Candidate(*_identity_or_folder(distribution), "entry_points.txt", refuse)]
    groups = itertools.groupby(points, operator.attrgetter("name"))
    return [_Candidate(*owner, name, functools.partial(_load_only, list(group))) for name, group in groups]


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    metadata = distribution.metadata
    return normalised(metadata.get("Name") or "<unnamed>"), metadata.get("Version") or ""


def _identity_or_folder(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Who it is, even where its METADATA cannot be read: its folder, ``name-version.dist-info``, says it too."""
    try:
        return _identity(distribution)
    except Exception:
        folder = str(getattr(distribution, "_path", "<unreadable>")).replace("\\", "/").rpartition("/")[2]
        name, _, version = folder.removesuffix(".dist-info").partition("-")
        return normalised(name), version


def _load_only(points: list[importlib.metadata.EntryPoint]) -> object:
    values = sorted({point.value for point in points})
    if len(values) > 1:
        raise PluginError(
            f"it declares this entry point {len(values)} times, as {quoted(values)}: give each its own name"
        )
    if not re.fullmatch(r"[\w.]+\s*(:\s*[\w.]+\s*)?(\[.*\])?", values[0]):
        raise PluginError(f"its entry point must name a 'module' or 'module:object', got '{values[0]}'")
    module = importlib.import_module(points[0].module)
    _refuse_other_api(vars(module).get("ldmkit_api", _FIRST_API))
    return points[0].load()


def _refuse_other_api(api: object) -> None:
    """Accept the same major with a minor that is not higher than ours."""
    if not (isinstance(api, tuple) and len(api) == 2 and all(type(part) is int and part >= 0 for part in api)):
        raise PluginError(f"its ldmkit_api must be two whole numbers, (major, minor), as in (1, 0); got {api!r}")
    if api[0] == PLUGIN_API[0] and api[1] <= PLUGIN_API[1]:
        return
    behind = "ldmkit" if api > PLUGIN_API else "the plug-in"
    ours = "{}.{}".format(*PLUGIN_API)
    raise PluginError(f"written for plug-in API {api[0]}.{api[1]}; this ldmkit has {ours}: upgrade {behind}")


def _refuse(message: str) -> object:
    raise PluginError(message)


def _disabled(distribution: str) -> str:
    """Why the environment keeps a plug-in out, or an empty string. The built-ins always stay."""
    only, never = _listed("LDMKIT_PLUGINS"), _listed("LDMKIT_DISABLE")
    if distribution == BUILTIN:
        return ""
    if only is not None and distribution not in only:
        return "not named in LDMKIT_PLUGINS"
    return "named in LDMKIT_DISABLE" if never is not None and distribution in never else ""


def _listed(variable: str) -> set[str] | None:
    """The distributions that a variable lists; None if it is not set. Set but empty lists none."""
    text = os.environ.get(variable)
    return None if text is None else {normalised(name.strip()) for name in text.split(",") if name.strip()}
