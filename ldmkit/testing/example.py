"""An example: how a small instance of a component is built, and what it is given.

The suite edits no options and invents no inputs that a component's declarations do not tell: it uses the example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldmkit.component import KINDS, quoted
from ldmkit.testing.values import Inputs


@dataclass(frozen=True, eq=False)
class Example:
    """A small instance of a component: milliseconds to build and to call, and every option that matters set.

    Args:
        kind: the registry's kind.
        name: the registered name; ``ldmkit.register`` gives one to a class that no plug-in offers yet.
        options: its keywords; a :class:`ldmkit.Part` with its kind is built anew for every component.
        label: tells several examples of one component apart.
        batch: ``n -> what it is given``, n samples that differ from each other: a batch for a conditioner, a user's
            inputs for a task. Elsewhere None is enough: inputs are made of what the component declares, and ``batch``
            replaces them: ``{"image", "noise", "z"}`` for a first stage, the keywords of ``forward`` for a backbone.
        dtypes: the precisions beside float32 in which a module runs.
        loss: ``(module, inputs) -> 0-d tensor``, what training differentiates. None: a projection of all outputs.
        expected: id of a check -> why it fails here. It must fail then.
        keeps: conditioner: batch keys whose information ``null`` keeps.
        neutral: guidance: the options, beside ``options``, with which it does nothing. None: there are none.
        per_image: guidance: the option that may be one number per image.
        single_step: sampler: whether a step depends on nothing but the state, so that a slice continues a trajectory.

    Raises:
        ValueError: an unknown kind, or a conditioner without ``batch``.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    batch: Callable[[int], Inputs] | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.bfloat16)
    loss: Callable[[Any, Inputs], Tensor] | None = None
    expected: Mapping[str, str] = field(default_factory=dict)
    keeps: tuple[str, ...] = ()
    neutral: Mapping[str, Any] | None = None
    per_image: str | None = None
    single_step: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"an example is of one of the kinds {quoted(KINDS)}, got '{self.kind}'")
        if self.kind == "conditioner" and self.batch is None:
            raise ValueError(
                f"the example of conditioner '{self.name}' needs batch=: a function from the number of samples to the "
                "batch that it reads"
            )

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'" + (f", {self.label}" if self.label else "")
