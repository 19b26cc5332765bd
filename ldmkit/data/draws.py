"""Numbers drawn from (seed, stream): the same on every machine and under every version of numpy.

Only the raw 64-bit words of the counter-based generator are used for whole numbers, because numpy promises those and
not what its distributions make of them. Normal draws are numpy's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Draws:
    """A sequence of draws that (seed, stream) determine.

    Args:
        seed: in [0, 2**64).
        stream: a name; streams of one seed are independent.

    Raises:
        ValueError: a seed out of range.
    """

    def __init__(self, seed: int, stream: str) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"a seed must lie in [0, 2**64), got {seed}")
        counter = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
        self._bits = np.random.Philox(key=np.array([seed, counter], dtype=np.uint64))

    def below(self, end: int) -> int:
        """A whole number in [0, end)."""
        return int(self._bits.random_raw()) % end

    def between(self, first: int, last: int) -> int:
        """A whole number in [first, last], both included."""
        return first + self.below(last - first + 1)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.uniform() < p

    def choice(self, of: Sequence[T]) -> T:
        """One of a sequence."""
        return of[self.below(len(of))]

    def order(self, count: int) -> list[int]:
        """A permutation of 0 ... count - 1."""
        places = list(range(count))
        for last in range(count - 1, 0, -1):
            at = self.below(last + 1)
            places[last], places[at] = places[at], places[last]
        return places

    def normal(self, shape: tuple[int, ...]) -> Floats:
        """Standard normal numbers of a shape, float64."""
        return np.random.Generator(self._bits).standard_normal(shape)
