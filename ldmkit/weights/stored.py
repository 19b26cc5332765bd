"""Where the numbers of a tensor lie in a file, and what a pickle says about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ldmkit.errors import CheckpointError
from ldmkit.weights.pickles import Storage, Tensor, count

OTHERS: Mapping[str, str] = {
    "epoch": "how long it was trained",
    "global_step": "how long it was trained",
    "pytorch-lightning_version": "state of the training program",
    "optimizer_states": "state of the optimizer",
    "optimizer": "state of the optimizer",
    "lr_schedulers": "state of the learning rate",
    "callbacks": "state of the training program",
    "loops": "state of the training program",
    "hyper_parameters": "settings of the training program",
    "hparams_name": "settings of the training program",
    "datamodule_hyper_parameters": "settings of the training program",
    "MixedPrecisionPlugin": "state of the training program",
    "native_amp_scaling_state": "state of the training program",
    "amp_scaling_state": "state of the training program",
}
"""What training programs store beside the weights, and what it is."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file.

    Args:
        dtype: of its elements.
        shape: its sides.
        stride: in elements.
        place: its first byte, from the beginning of the file.
        crc: CRC-32 of its bytes, where the file states it for exactly these.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    place: int
    crc: int | None = None

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return count(self.shape) * self.dtype.itemsize


class Run(NamedTuple):
    """Where the bytes of a storage lie in a file."""

    place: int
    nbytes: int
    crc: int | None


class Read(NamedTuple):
    """What is known of a file without reading a number: the middle fields of ``Contents``."""

    tensors: Mapping[str, Stored]
    others: Mapping[str, str]
    facts: Mapping[str, str | int | float]


def dtype_of(kind: str) -> torch.dtype:
    """The dtype by its name as an attribute of torch."""
    found: torch.dtype = getattr(torch, kind)
    return found


def from_pickle(value: object, locate: Callable[[Storage], Run]) -> Read:
    """What a pickled checkpoint holds: a dictionary of tensors, or one with such a dictionary as ``state_dict``.

    Args:
        value: what the pickle describes.
        locate: where a storage lies.

    Raises:
        CheckpointError: something else, or a state dict with other things than named tensors.
    """
    if not isinstance(value, dict):
        raise CheckpointError(f"it holds one {type(value).__name__.lower()} and not a dictionary of weights")
    state = value.get("state_dict", value)
    if not isinstance(state, dict):
        raise CheckpointError(f"its 'state_dict' is a {type(state).__name__.lower()} and not a dictionary")
    beside = value if state is not value else {k: v for k, v in value.items() if not isinstance(v, Tensor)}
    others = {str(key): _why(key) for key in beside if isinstance(key, str) and key != "state_dict"}
    facts = {key: v for key, v in beside.items() if isinstance(key, str) and isinstance(v, str | int | float)}
    tensors = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and isinstance(name, str):
            tensors[name] = _stored(tensor, locate(tensor.storage))
        elif state is not value:
            raise CheckpointError(
                f"the entry {_shown(name)} of its state dict is no named tensor but a {type(tensor).__name__.lower()}"
            )
    if not tensors:
        raise CheckpointError(
            f"it holds no weights: its entries are {', '.join(_shown(key) for key in list(value)[:10]) or 'none'}"
        )
    return Read(tensors, others, facts)


def _why(key: str) -> str:
    return OTHERS.get(key, "no weights")


def _shown(key: Any) -> str:  # noqa: ANN401 - any key
    return f"'{key:.60}'" if isinstance(key, str) else f"a {type(key).__name__.lower()}"


def _stored(tensor: Tensor, run: Run) -> Stored:
    dtype, storage = dtype_of(tensor.storage.kind), tensor.storage
    whole = tensor.offset == 0 and count(tensor.shape) == storage.numel
    return Stored(
        dtype, tensor.shape, tensor.stride, run.place + tensor.offset * dtype.itemsize, run.crc if whole else None
    )
