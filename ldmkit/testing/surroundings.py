"""The state of the process that belongs to everyone, which a component may neither change nor depend on."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def _torch_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _set_torch_state(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return name, keys.tobytes(), *rest


def _set_numpy_state(state: tuple[Any, ...]) -> None:
    name, keys, *rest = state
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _leave(value: object) -> None:
    """The warning filters are put back by ``catch_warnings``, which alone can tell the interpreter of it."""


SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch's generator": (_torch_state, _set_torch_state),
    "numpy's generator": (_numpy_state, _set_numpy_state),
    "Python's generator": (random.getstate, random.setstate),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "cudnn's benchmark mode": (
        lambda: torch.backends.cudnn.benchmark,
        lambda value: setattr(torch.backends.cudnn, "benchmark", value),
    ),
    "the warning filters": (lambda: list(warnings.filters), _leave),
    "the root logger's handlers": (
        lambda: list(logging.root.handlers),
        lambda handlers: setattr(logging.root, "handlers", handlers),
    ),
    "the environment": (lambda: dict(os.environ), _set_environment),
    "the working folder": (os.getcwd, os.chdir),
}
"""What is shared: how to read it, as something that can be compared, and how to put it back."""


def surroundings() -> dict[str, Any]:
    """The shared state as it is now, by name, to be compared with a later one."""
    return {name: read() for name, (read, _) in SHARED.items()}


@contextmanager
def restored(seed: int | None = None) -> Iterator[None]:
    """Put the shared state back at the end; within, torch's generator starts from ``seed`` where one is given."""
    before = surroundings()
    with warnings.catch_warnings():
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            yield
        finally:
            for name, (read, write) in SHARED.items():
                if read() != before[name]:
                    write(before[name])
