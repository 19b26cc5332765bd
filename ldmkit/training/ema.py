r"""Exponential moving average of weights, with the original's warm-up.

.. math:: \bar w \leftarrow \bar w + (1 - d_n)(w - \bar w), \qquad d_n = \min(d, (1 + n) / (10 + n))

n counts the updates from 1. The averages are float32, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """The averages of a module's trainable parameters.

    Args:
        module: the module to follow; parameters that need no gradient when this is made are left out.
        decay: d in [0, 1].

    Raises:
        ValueError: a decay outside [0, 1], or nothing to average.

    Source: the original's ``LitEma``.
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"EMA decay must lie in [0, 1], got {decay}")
        self.decay = decay
        self.updates = 0
        self.average = {n: p.detach().float().clone() for n, p in module.named_parameters() if p.requires_grad}
        if not self.average:
            raise ValueError(f"{type(module).__name__} has no trainable parameters to average")

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the averages toward the module's weights; call after each optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = self._weights(module)
        current = [weights[name].detach().float() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's weights with the averages."""
        weights = self._weights(module)
        for name, average in self.average.items():
            weights[name].copy_(average)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[None]:
        """The module has the averages inside the block and its own weights again after it."""
        weights = self._weights(module)
        own = {name: weights[name].detach().clone() for name in self.average}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in own.items():
                    weights[name].copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """Averages, number of updates and decay: tensors and numbers only."""
        return {"average": dict(self.average), "updates": self.updates, "decay": self.decay}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: the averages are of other parameters.
        """
        if state["average"].keys() != self.average.keys():
            different = sorted(state["average"].keys() ^ self.average.keys())
            raise ValueError(f"the averages belong to other parameters, such as {different[:5]}")
        self.updates, self.decay = int(state["updates"]), float(state["decay"])
        for name, average in self.average.items():
            average.copy_(state["average"][name])

    def _weights(self, module: nn.Module) -> dict[str, Tensor]:
        return dict(module.named_parameters())
