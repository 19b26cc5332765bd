"""The words of a component's configuration: known ones, their defaults, and what is refused.

An older folder lacks words that were added later, so each class has a table of defaults. A word that is not in the
table, or that has a value the model has no place for, is an error that names both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ldmkit.errors import CheckpointError

LARGEST = 2**16
"""No width, depth or count of a published configuration comes near; larger ones would only cost memory."""

Words = Mapping[str, Any]


def settled(where: str, given: Words, defaults: Words, only: Words) -> dict[str, Any]:
    """The given words over the defaults, after refusing what has no place here.

    Args:
        where: the file, for messages.
        given: the file's words; those that begin with an underscore are diffusers' own notes.
        defaults: every word of the class with its default.
        only: word -> the one value that has a place here.

    Raises:
        CheckpointError: an unknown word with a value, or another value than the one supported.
    """
    for word, value in given.items():
        if word not in defaults and not word.startswith("_") and value is not None:
            raise CheckpointError(f"{where} says {word}={value!r:.80}, a word that ldmkit does not know")
    words = {**defaults, **given}
    for word, value in only.items():
        if words[word] != value:
            raise CheckpointError(f"{where} says {word}={words[word]!r:.80}; ldmkit has a place for {value!r} alone")
    return words


def class_of(where: str, given: Words, known: Collection[str]) -> str:
    """The class that a file says it is of.

    Raises:
        CheckpointError: another one than those known.
    """
    name = given.get("_class_name")
    if not isinstance(name, str) or name not in known:
        raise CheckpointError(f"{where} is of class {name!r:.80}; ldmkit knows {sorted(known)} there")
    return name


def count(where: str, words: Words, word: str, smallest: int = 1) -> int:
    """A whole number in [smallest, LARGEST].

    Raises:
        CheckpointError: something else.
    """
    value = words[word]
    if type(value) is not int or not smallest <= value <= LARGEST:
        raise CheckpointError(f"{where} says {word}={value!r:.80}, expected a whole number in [{smallest}, {LARGEST}]")
    return value


def number(where: str, words: Words, word: str) -> float:
    """A finite number.

    Raises:
        CheckpointError: something else.
    """
    value = words[word]
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CheckpointError(f"{where} says {word}={value!r:.80}, expected a finite number")
    return float(value)


def counts(where: str, words: Words, word: str) -> list[int]:
    """A list of 1 to 16 whole numbers.

    Raises:
        CheckpointError: something else.
    """
    values = words[word]
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= 16:
        raise CheckpointError(f"{where} says {word}={values!r:.80}, expected a list of 1 to 16 whole numbers")
    return [count(where, {word: value}, word) for value in values]


def per_level(where: str, words: Words, word: str, levels: int) -> list[int]:
    """One whole number per level, from a list or from one number for all.

    Raises:
        CheckpointError: something else, or a list of another length.
    """
    if type(words[word]) is int:
        return [count(where, words, word)] * levels
    values = counts(where, words, word)
    if len(values) != levels:
        raise CheckpointError(f"{where} says {word}={values}, expected one number for each of {levels} levels")
    return values


def attending(where: str, words: Words, kinds: Mapping[str, tuple[str, str]], levels: int) -> list[bool]:
    """Which levels attend, read from the types of the blocks on both sides.

    Args:
        where: the file, for messages.
        words: its words.
        kinds: ``down_block_types`` and ``up_block_types`` -> (type without attention, type with).
        levels: how many there are.

    Raises:
        CheckpointError: a type that is not one of the two, another number of types, or halves that differ.
    """
    sides = []
    for word, pair in kinds.items():
        types = words[word]
        if not isinstance(types, list | tuple) or len(types) != levels or any(kind not in pair for kind in types):
            raise CheckpointError(f"{where} says {word}={types!r:.200}, expected {levels} of {pair}")
        sides.append([kind == pair[1] for kind in types])
    down, up = sides
    if down != up[::-1]:
        raise CheckpointError(f"{where} has attention at other levels on the way up than on the way down")
    return down


def same(where: str, words: Words, word: str, values: Sequence[int]) -> int:
    """The one value of a list whose values must agree.

    Raises:
        CheckpointError: they differ.
    """
    if len(set(values)) != 1:
        raise CheckpointError(f"{where} says {word}={words[word]!r:.80}; ldmkit has one value for all levels")
    return values[0]


def without(defaults: Words, free: Collection[str]) -> dict[str, Any]:
    """The words that have one value here, their default: all but those that are free."""
    return {word: value for word, value in defaults.items() if word not in free}


def block_types(attends: Sequence[bool], kinds: Mapping[str, tuple[str, str]]) -> dict[str, list[str]]:
    """The types of the blocks on both sides: the inverse of :func:`attending`."""
    down, up = kinds["down_block_types"], kinds["up_block_types"]
    return {
        "down_block_types": [down[attend] for attend in attends],
        "up_block_types": [up[attend] for attend in reversed(attends)],
    }
