"""Writes distributions as an installer would: a ``*.dist-info`` folder with metadata and entry points, and modules."""

import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

HOOK = """
import ldmkit

@ldmkit.hookimpl
def ldmkit_register(register):
"""


def hook(*lines: str) -> str:
    """The source of a light module whose hook runs the lines given."""
    return HOOK + "".join(f"    {line}\n" for line in lines)


def offer(name: str, factory: str, kind: str = "conditioner") -> str:
    """The source of a light module that offers one component."""
    return hook(f"register.{kind}({name!r}, {factory!r})")


def installed() -> str:
    """The plug-ins that this environment really has, as ``LDMKIT_DISABLE`` wants them."""
    points = importlib.metadata.entry_points(group="ldmkit")
    return ",".join(sorted({point.dist.name for point in points if point.dist is not None} - {"ldmkit"}))


def install(
    site: Path,
    name: str,
    modules: Mapping[str, str],
    points: Mapping[str, str] | str | None = None,
    version: str = "0.1",
) -> None:
    """Write one distribution into a folder that is or will be on the path.

    Args:
        site: the folder.
        name: the distribution's name as its author writes it.
        modules: module name -> source.
        points: entry-point name -> value, or the lines of the group as text. None: the first module, as ``main``.
        version: the distribution's version.
    """
    for module, source in modules.items():
        (site / f"{module}.py").write_text(dedent(source))
    if points is None:
        points = {"main": next(iter(modules))}
    if not isinstance(points, str):
        points = "".join(f"{point} = {value}\n" for point, value in points.items())
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "entry_points.txt").write_text(f"[ldmkit]\n{points}")
    importlib.invalidate_caches()
