"""Which samples a step sees, and the seed of each: functions of (seed, step), so that a run may stop anywhere.

The samples of a run are numbered: step s of batch B holds the numbers s B to s B + B - 1, whatever the number of
processes. Number g falls into epoch g // N of N samples, and each epoch has a permutation of its own.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from typing import Any

import numpy as np

Integers = np.ndarray[Any, np.dtype[np.int64]]


def indices(seed: int, first: int, count: int, length: int) -> Integers:
    """Where in the data the samples ``first`` to ``first + count - 1`` of a run are.

    Args:
        seed: of the run.
        first: number of the first sample, at least 0.
        count: how many.
        length: N, samples in the data.

    Returns:
        (count,) in [0, N). Every N numbers from a multiple of N on see each place once.

    Raises:
        ValueError: no data.
    """
    if length < 1:
        raise ValueError("the data set is empty: there is nothing to train on")
    numbers = np.arange(first, first + count)
    places = np.empty(count, dtype=np.int64)
    for epoch in np.unique(numbers // length):
        inside = numbers // length == epoch
        places[inside] = _permutation(seed, int(epoch), length)[numbers[inside] % length]
    return places


def sample_seeds(seed: int, first: int, count: int) -> tuple[int, ...]:
    """One seed in [0, 2**64) for each of the samples ``first`` to ``first + count - 1``, equal in no two runs' order.

    What a sample draws (time, noise, dropout of its condition, augmentation) is a function of it.
    """
    return tuple(hashed(seed, number) for number in range(first, first + count))


def hashed(*numbers: int) -> int:
    """An integer in [0, 2**64) that shows no trace of how the numbers, each in [0, 2**64), are related."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}Q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> Integers:
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(length)
