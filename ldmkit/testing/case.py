"""What a check is handed: an example, ready to be built and called in known surroundings."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ldmkit import registry
from ldmkit.parts import Part
from ldmkit.testing.example import Example
from ldmkit.testing.surroundings import restored
from ldmkit.testing.use import USES
from ldmkit.testing.values import Inputs, cloned

SAMPLES = 3
"""How many samples inputs have where a check does not say."""


class Case:
    """An example with the means to build, feed and call it.

    Args:
        example: the example.
    """

    def __init__(self, example: Example) -> None:
        self.example = example
        self.protocol = USES[example.kind].protocol

    def build(self, options: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - the kind decides the type
        """The component as the registry builds it, with these options beside the example's."""
        given = {**self.example.options, **(options or {})}
        own = {key: _own(value) for key, value in given.items()}
        return registry.build(self.example.kind, self.example.name, **own)

    def component(self, options: Mapping[str, Any] | None = None, seed: int = 0) -> Any:  # noqa: ANN401
        """The component, the same for the same seed; a module in eval mode and with no weight left at zero."""
        with restored(seed):
            built = self.build(options)
        if isinstance(built, nn.Module):
            awaken(built.eval())
        return built

    def inputs(self, component: object, count: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
        """What the component is given, ``count`` samples; the same for the same seed."""
        with restored(seed):
            if self.example.batch is not None:
                return dict(self.example.batch(count))
            return dict(USES[self.example.kind].inputs(component, count))

    def call(self, component: object, inputs: Inputs) -> Mapping[str, Any]:
        """All that the component gives for these inputs, in the surroundings as they are."""
        return USES[self.example.kind].outputs(component, inputs)

    def outputs(self, component: object, inputs: Inputs, seed: int = 0) -> Mapping[str, Any]:
        """As :meth:`call` for a copy of the inputs, without gradients, in known surroundings that are put back."""
        with restored(seed), torch.no_grad():
            return self.call(component, cloned(inputs))


@torch.no_grad()
def awaken(module: nn.Module) -> None:
    """Fill every weight that is zero: a network that begins as the zero function shows nothing of itself."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and not bool(parameter.any()):
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_(noise / max(fan_in, 1) ** 0.5)


def _own(value: object) -> object:
    """An option of one component: what a part describes is built for it."""
    return registry.build_part(value.kind, value) if isinstance(value, Part) and value.kind is not None else value
