"""A distribution to start a plug-in from: rendered from the plain-text templates beside this module.

What is written builds, installs and passes the conformance suite as it is; its author changes the component. The
templates hold ``@placeholders@`` and nothing else that is special. Nothing here imports torch.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from ldmkit._version import __version__
from ldmkit.builtin import TABLE
from ldmkit.component import KINDS, did_you_mean, quoted
from ldmkit.errors import PluginError


def write(name: str, kind: str = "conditioner", out: Path | str = ".") -> Path:
    """Write the distribution ``ldmkit-NAME`` and return its folder.

    Args:
        name: what the component will be called: lower-case words and digits joined by hyphens, without ``ldmkit-``.
        kind: the registry's kind.
        out: the folder to write into; made where it is missing.

    Raises:
        PluginError: a name or kind that the registry would refuse, a folder that exists, or one that cannot be made.
    """
    rendered = render(name, kind)
    folder = Path(out) / f"ldmkit-{name}"
    try:
        folder.mkdir(parents=True)
        for path, text in rendered.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise PluginError(f"{error.filename} exists: choose another name, or another folder with --out") from error
    except OSError as error:
        raise PluginError(f"{error.filename} cannot be written: {error.strerror}") from error
    return folder


def render(name: str, kind: str = "conditioner") -> dict[str, str]:
    """The files of the distribution: path inside its folder -> text.

    Raises:
        PluginError: a name or kind that the registry would refuse.
    """
    _check(name, kind)
    words = _placeholders(name, kind)
    package = words["package"]
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/__init__.py": "__init__.py",
        f"{package}/_register.py": "_register.py",
        f"{package}/{words['module']}.py": f"{kind}/component.py",
        "tests/test_conformance.py": f"{kind}/test_conformance.py",
    }
    _check_free(words["attribute"], name, _template(f"{kind}/component.py"))
    return {path: _filled(_template(template), words) for path, template in templates.items()}


def _check(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise PluginError(f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}; the kinds are {quoted(KINDS)}")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise PluginError(f"{name!r} is no name for a plug-in: it is lower-case words and digits joined by hyphens")
    if name.startswith("ldmkit-"):
        raise PluginError(f"give the name without its prefix, {name.removeprefix('ldmkit-')!r}: ldmkit- is put before")
    if name in TABLE[kind]:
        raise PluginError(f"{kind} '{name}' is a built-in, whose name is reserved: choose another name")


def _check_free(attribute: str, name: str, template: str) -> None:
    """Refuse a name that would hide what the component's module imports, or that Python keeps for itself."""
    imports = " ".join(re.findall(r"^(?:from|import) .*$", template, re.MULTILINE))
    if keyword.iskeyword(attribute) or attribute in re.findall(r"\w+", imports):
        raise PluginError(f"{name!r} would be called {attribute} in Python, which is taken: choose another name")


def _placeholders(name: str, kind: str) -> dict[str, str]:
    snake = name.replace("-", "_")
    camel = "".join(word.capitalize() for word in name.split("-"))
    module = kind.replace("-", "_")
    return {
        "name": name,
        "kind": kind,
        "distribution": f"ldmkit-{name}",
        "package": f"ldmkit_{snake}",
        "module": module,
        "method": module,
        "variable": module,
        "attribute": snake if kind == "recipe" else camel,
        "version": __version__,
    }


def _template(path: str) -> str:
    # Named .txt so that no tool takes a template for code.
    return files("ldmkit").joinpath("templates", f"{path}.txt").read_text(encoding="utf-8")


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text
