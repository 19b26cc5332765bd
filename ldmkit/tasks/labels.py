"""Class labels as people have them: numbers, or the names that travel with the model."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from ldmkit.component import did_you_mean


def class_index(label: Any, classes: int | None, names: Sequence[str] | None, what: str) -> int:  # noqa: ANN401
    """The index of a class in [0, K - 1].

    Args:
        label: an integer, or a name.
        classes: K; None: only the sign is checked.
        names: the classes' names; None: the model carries none.
        what: the keyword and the item, for messages.

    Raises:
        TypeError: neither a number nor a name.
        ValueError: no such class.
    """
    if isinstance(label, str):
        if names is None:
            raise ValueError(f"{what} is '{label}', and the model carries no names of classes: give the class's index")
        if label not in names:
            raise ValueError(
                f"{what} is '{label}', which is none of the model's {len(names)} classes{did_you_mean(label, names)}"
            )
        return names.index(label)
    if isinstance(label, bool):
        raise TypeError(f"{what} must be integers or names, got {label}")
    try:
        number = index(label)
    except TypeError as error:
        raise TypeError(f"{what} must be integers or names, got {label!r:.60}") from error
    if number < 0 or (classes is not None and number >= classes):
        raise ValueError(f"{what} is {number}; the classes are 0 to {'...' if classes is None else classes - 1}")
    return number
