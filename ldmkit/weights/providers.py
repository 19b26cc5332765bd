"""Who provides the parts of a recipe, and what to install where someone is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ldmkit._version import __version__
from ldmkit.component import owned_by
from ldmkit.discovery import BUILTIN, PluginInfo, normalised
from ldmkit.errors import UnknownComponentError
from ldmkit.parts import Part, Recipe
from ldmkit.registry import LOCAL, components, plugins


def every_part(recipe: Recipe) -> Iterator[tuple[str | None, Part]]:
    """(kind, part) of everything a recipe needs, parts inside options too."""
    for kind, part in recipe.parts():
        yield kind, part
        yield from _inside(dict(part.options))


def providers(recipe: Recipe) -> dict[str, str]:
    """Distribution -> version of every part, ldmkit first; what was registered by hand has no version."""
    versions = {info.distribution: info.version for info in plugins()}
    owners = sorted({_owner(part) for _, part in every_part(recipe)} - {BUILTIN})
    return {BUILTIN: __version__, **{owner: versions.get(owner, "") for owner in owners}}


def check_provided(recipe: Recipe, saved: Mapping[str, str]) -> None:
    """Refuse a recipe that cannot be built here, with everything that is missing in one message.

    Args:
        recipe: what is to be built.
        saved: distribution -> version that it was written with.

    Raises:
        UnknownComponentError: parts are not offered by what is installed; the message lists each with its
            distribution, what is wrong with that, and the line for pip.
    """
    missing: dict[str, list[str]] = {}
    for kind, part in every_part(recipe):
        if kind is not None and not _offered(kind, part):
            missing.setdefault(_owner(part), []).append(f"{kind} '{part.name.partition('@')[0]}'")
    if not missing:
        return
    infos = {info.distribution: info for info in plugins()}
    lacks = [_lack(owner, parts, saved.get(owner, ""), infos.get(owner)) for owner, parts in sorted(missing.items())]
    wanted = [_requirement(owner, saved.get(owner, "")) for owner in sorted(missing) if _helps(owner, infos.get(owner))]
    wanted = list(filter(None, wanted))
    pip = f"; install what is missing: pip install {' '.join(wanted)}" if wanted else ""
    raise UnknownComponentError(f"not every part can be built here: {'; '.join(lacks)}{pip}")


def _inside(value: object) -> Iterator[tuple[str | None, Part]]:
    match value:
        case Part():
            yield value.kind, value
            yield from _inside(dict(value.options))
        case list():
            for item in value:
                yield from _inside(item)
        case dict():
            for item in value.values():
                yield from _inside(item)


def _owner(part: Part) -> str:
    owner = part.name.partition("@")[2]
    return owner if owner == LOCAL else normalised(owner or BUILTIN)


def _offered(kind: str, part: Part) -> bool:
    short, _, owner = part.name.partition("@")
    offers = [entry for entry in components(kind).values() if entry.name == short]
    return any(not owner or entry.distribution == _owner(part) for entry in offers)


def _lack(owner: str, parts: list[str], version: str, info: PluginInfo | None) -> str:
    """One distribution that is missing or does not offer the parts."""
    wants = ", ".join(dict.fromkeys(parts))
    if owner == LOCAL:
        return f"{wants} was registered by hand: call ldmkit.register first"
    if owner == BUILTIN:
        return f"unknown {wants}; the file was written by ldmkit {version}, this is {__version__}"
    written = f"the file was written with {version}" if version else "the file does not say its version"
    if info is None:
        return f"{wants} needs {owner}, which is not installed ({written})"
    if info.status == "ok":
        return f"{wants} is not in the installed {owned_by(owner, info.version)} ({written})"
    return f"{wants} needs {owner}, whose installed plug-in is {info.status}: {info.error}"


def _helps(owner: str, info: PluginInfo | None) -> bool:
    """Whether installing helps: not where what is installed is broken, disabled or by hand."""
    return owner not in (LOCAL, BUILTIN) and (info is None or info.status == "ok")


def _requirement(owner: str, version: str) -> str:
    """What to hand to pip, from names of a file: nothing that a shell or pip could read as something else."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", owner):
        return ""
    return f'"{owner}>={version}"' if re.fullmatch(r"\d+(\.\w+)*", version) else owner
