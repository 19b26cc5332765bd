"""Noise per image: what image i draws depends on its seed and on nothing else.

A draw is a function of (seed, stream, level): a counter-based generator is keyed by them, so an image is the same
alone or in any batch, a slice of the levels draws what the whole trajectory would have drawn there, and two threads
cannot disturb each other. Draws are made on the CPU in float32 and then moved, so a CPU and a GPU start from the same
numbers.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

from ldmkit.process import Level

NoiseSource = Callable[[Tensor, Level[float]], Tensor]
"""``(like, stop) -> eps``: a standard normal draw of the shape, dtype and device of ``like`` for the level ``stop``."""


@dataclass(frozen=True)
class Noise:
    """Standard normal noise from one seed per image.

    Args:
        seeds: one integer in [0, 2**64) per image.
        stream: a name; streams of one seed are independent (start, step, known, ...).

    Raises:
        ValueError: no seeds, or one outside [0, 2**64).
    """

    seeds: tuple[int, ...]
    stream: str = "step"

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("noise needs one seed per image, got none")
        for seed in self.seeds:
            if not 0 <= seed < 2**64:
                raise ValueError(f"a seed must lie in [0, 2**64), got {seed}")

    def __call__(self, like: Tensor, stop: Level[float]) -> Tensor:
        """One draw per image, of the shape, dtype and device of ``like``: (B, ...), B = number of seeds.

        Raises:
            ValueError: ``like`` has another batch size.
        """
        if like.shape[0] != len(self.seeds):
            raise ValueError(f"{len(self.seeds)} seeds cannot make noise for {like.shape[0]} images: one seed an image")
        counter = _counter(self.stream, stop.t)
        draw = torch.from_numpy(np.stack([_normal(seed, counter, tuple(like.shape[1:])) for seed in self.seeds]))
        if like.is_cuda:
            return draw.pin_memory().to(like.device, like.dtype, non_blocking=True)
        return draw.to(like.device, like.dtype)

    def on(self, stream: str) -> Noise:
        """The same seeds on another, independent stream."""
        return replace(self, stream=stream)

    def constant(self, like: Tensor) -> Tensor:
        """One draw per image that belongs to no level: the first state, and everything that training draws."""
        return self(like, _NO_LEVEL)

    def uniform(self) -> Tensor:
        """One number in [0, 1) per image, float32 (B,): training times and dropout."""
        counter = _counter(self.stream, 0.0)
        return torch.tensor([np.random.Generator(_bits(seed, counter)).random(dtype=np.float32) for seed in self.seeds])


_NO_LEVEL = Level(0.0, 1.0, 0.0)


def tempered(noise: NoiseSource, temperature: float) -> NoiseSource:
    """Scale every draw: the original's ``temperature``, 1 by default there.

    Raises:
        ValueError: a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"noise temperature must be at least 0, got {temperature}")
    return lambda like, stop: temperature * noise(like, stop)


def seeds_from(seed: SupportsIndex | Sequence[SupportsIndex], count: int) -> tuple[int, ...]:
    """One seed per image: a list as it is, an integer as seed, seed + 1, ...

    Raises:
        ValueError: a list of another length.
        TypeError: a seed that is not an integer.
    """
    if not isinstance(seed, Sequence | Tensor | np.ndarray):
        first = index(seed)
        return tuple(range(first, first + count))
    if len(seed) != count:
        raise ValueError(f"{count} images need {count} seeds, got {len(seed)}")
    return tuple(index(one) for one in seed)


def _counter(stream: str, t: float) -> int:
    digest = hashlib.blake2b(struct.pack("<d", t) + stream.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _bits(seed: int, counter: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, counter], dtype=np.uint64))


def _normal(seed: int, counter: int, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.Generator(_bits(seed, counter)).standard_normal(shape, dtype=np.float32)
