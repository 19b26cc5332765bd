"""What the loop trains: any :class:`Trainee`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

Record = Mapping[str, Any]
"""One sample as a data set gives it."""

Augment = Callable[[Record, int], Record]
"""``(record, seed) -> record``: what happens to a sample on its way; a function of its arguments alone."""


@runtime_checkable
class Trainee(Protocol):
    """What is optimised, on what, and what is written.

    ``phases`` maps names to modules with ``forward(batch, seeds, step) -> (B,)``, the loss per sample. Each has an
    optimizer of its own and all take their turn in every step, in order, on the same batch; a first stage and its
    discriminator are two. A phase optimises its parameters that require gradients: what it reads and another phase
    trains is kept outside its submodules.
    """

    @property
    def phases(self) -> Mapping[str, nn.Module]: ...

    def begin(self, read: Callable[[int], Sequence[Record]]) -> None:
        """Whatever is measured once before the first step, and not when a run goes on.

        Args:
            read: the first so many samples of the run, the same in every process.
        """

    def prepare(self, records: Sequence[Record], seeds: Sequence[int]) -> dict[str, Any]:
        """The batch of some records, on the CPU.

        Args:
            records: B samples.
            seeds: one per sample; whatever is drawn is a function of them.
        """

    def show(self, step: int) -> Mapping[str, Tensor]:
        """Pictures of how it goes, by name: (B, C, H, W) in [0, 1], written side by side; the same in every process.

        Called with averaged weights, in evaluation mode and without gradients.
        """

    def export(self, path: Path, notes: Mapping[str, Any]) -> None:
        """Write the result as one safetensors file; one process calls it, with averaged weights.

        Args:
            path: the file.
            notes: plain data on the run, to be written with it.
        """


@runtime_checkable
class Reporting(Protocol):
    """A trainee that says in numbers how it goes, beside its loss."""

    def numbers(self, step: int) -> Mapping[str, float]:
        """Numbers by name for the log, where they are ``shown/<name>``; the same in every process.

        Called after :meth:`Trainee.show`, with averaged weights and in evaluation mode.
        """
