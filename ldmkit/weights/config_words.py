"""The original's YAML files as plain values: read without building anything, every word accounted for.

A ``target`` there is the dotted name of a class that the original imports and calls. Here it is a word that is looked
up in a table, see :mod:`ldmkit.weights.config`; nothing is imported and no path in the file is opened.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from ldmkit.errors import CheckpointError

MAX_BYTES = 2**16
"""The longest configuration that is read; published ones have 5 KB."""

MAX_BRACKETS = 500

T = TypeVar("T")


def parsed(path: str | os.PathLike[str]) -> dict[str, object]:
    """The values of a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not YAML of plain values, too long, or with references (which a few lines can unfold into more
            than fits the memory).
        ImportError: PyYAML is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} is no configuration: those are files of at most {MAX_BYTES:,} bytes")
    yaml = import_module("yaml")
    try:
        text = path.read_bytes().decode()
        if text.count("[") + text.count("{") > MAX_BRACKETS:  # each costs the scanner a look at all those before it
            raise CheckpointError(f"the configuration {path} has more than {MAX_BRACKETS} brackets")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise CheckpointError(f"the configuration {path} refers to parts of itself, as no published one does")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise CheckpointError(f"the configuration {path} is no YAML of plain values: {error!s:.300}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"the configuration {path} is no mapping")
    return values


class Words:
    """One block of a configuration; :meth:`end` refuses the words that nobody took.

    Args:
        where: how messages call it.
        given: the block.

    Raises:
        CheckpointError: it is no mapping of words.
    """

    def __init__(self, where: str, given: object) -> None:
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise CheckpointError(f"{where} is no mapping of words")
        self.where = where
        self.left: dict[str, object] = dict(given)

    def take(self, word: str, default: object = None) -> object:
        """A value of any kind."""
        return self.left.pop(word, default)

    def block(self, word: str, default: Mapping[str, object] | None = None) -> Words:
        """A block inside this one."""
        return Words(f"{self.where}.{word}", self.take(word, default))

    def text(self, word: str, default: str | None = None) -> str:
        """A string."""
        return self._checked(word, default, lambda v: isinstance(v, str), "text")

    def flag(self, word: str, default: bool = False) -> bool:
        """True or false."""
        return self._checked(word, default, lambda v: isinstance(v, bool), "true or false")

    def number(self, word: str, default: float | None = None) -> float:
        """A finite number; YAML 1.1 reads 1e-4 as text."""
        value = self.take(word, default)
        try:
            found = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if not math.isfinite(found):
            raise self.error(word, value, "a number")
        return found

    def count(self, word: str, default: int | None = None, most: int = 100_000) -> int:
        """A whole number of at least 1."""
        return self._checked(word, default, lambda v: _is_count(v, most), f"a whole number from 1 to {most}")

    def counts(self, word: str, default: Collection[int] | None = None, most: int = 100_000) -> list[int]:
        """A list of at most 16 whole numbers."""
        listed = self._checked(
            word,
            default,
            lambda v: isinstance(v, list | tuple) and len(v) <= 16 and all(_is_count(n, most) for n in v),
            f"a list of at most 16 whole numbers from 1 to {most}",
        )
        return list(listed)

    def only(self, word: str, *values: object) -> None:
        """A word that may have these values alone, or be left out: there is nothing here for another."""
        value = self.take(word, values[0])
        if value not in values:
            raise self.error(word, value, f"one of {list(values)}: ldmkit has nothing for another value")

    def ignore(self, words: Collection[str]) -> None:
        """Words that say nothing about how a model is composed."""
        for word in words:
            self.left.pop(word, None)

    def end(self) -> None:
        """Refuse the words that are left.

        Raises:
            CheckpointError: naming them.
        """
        if self.left:
            raise CheckpointError(f"{self.where} says {sorted(self.left)[:10]}, which ldmkit does not know")

    def error(self, word: str, value: object, expected: str) -> CheckpointError:
        """A refusal of one word's value."""
        shown = repr(value)[:80] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        return CheckpointError(f"{self.where} says {word}: {shown}, expected {expected}")

    def _checked(self, word: str, default: T | None, fits: Callable[[object], bool], expected: str) -> T:
        value = self.take(word, default)
        if not fits(value):
            raise self.error(word, value, expected)
        return value  # type: ignore[return-value]  # it was just checked


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most
