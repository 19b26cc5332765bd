"""Images without any condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ldmkit.tasks.contract import Inputs


@dataclass(frozen=True)
class Unconditional:
    """Nothing is given and nothing is filled."""

    takes = ()
    fills = ()

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """An empty batch."""
        return {}
