"""What a task is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

Inputs = Mapping[str, Any]
"""What the user gave, by keyword: the ecosystem's names (``prompt``, ``image``, ``label``, ...)."""


@runtime_checkable
class Task(Protocol):
    """Turns inputs into a batch.

    ``takes`` names the keywords it understands; ``fills`` the batch keys it makes of them, each of which some
    conditioner of the model must read.
    """

    takes: tuple[str, ...]
    fills: tuple[str, ...]

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """The batch: every key in ``fills``, B samples each.

        Raises:
            ValueError, TypeError: an input is missing or wrong, before any computation.
        """
