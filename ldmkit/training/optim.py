"""What the loop optimises with: learning rates as functions of the step, and AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

Rate = Callable[[int], float]
"""``step -> learning rate``; the first step is 0."""

Optimizing = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Parameters -> their optimizer, whose learning rate the loop sets before each step."""


def constant(rate: float, warm_up: int = 0) -> Rate:
    """A rate that grows linearly over the first ``warm_up`` steps and then stays.

    Raises:
        ValueError: a rate that is not positive, or a negative warm-up.
    """
    _check(rate, warm_up)
    return lambda step: rate * min(1.0, (step + 1) / max(1, warm_up))


def cosine(rate: float, steps: int, warm_up: int = 0) -> Rate:
    """A rate that grows linearly over ``warm_up`` steps and falls by half a cosine, to 0 after ``steps``.

    Raises:
        ValueError: a rate that is not positive, or a warm-up that is negative or leaves no steps.
    """
    _check(rate, warm_up)
    if steps <= warm_up:
        raise ValueError(f"a warm-up of {warm_up} steps leaves none of {steps} to fall in")

    def at(step: int) -> float:
        if step < warm_up:
            return rate * (step + 1) / warm_up
        share = min(1.0, (step - warm_up) / (steps - warm_up))
        return rate * 0.5 * (1 + math.cos(math.pi * share))

    return at


def _check(rate: float, warm_up: int) -> None:
    if not rate > 0:
        raise ValueError(f"a learning rate is positive, got {rate}")
    if warm_up < 0:
        raise ValueError(f"warm_up is a number of steps, at least 0, got {warm_up}")


@dataclass(frozen=True)
class AdamW:
    """AdamW in its fused form, one pass over all weights.

    Args:
        betas: decay of the two moments.
        weight_decay: of every weight; the original and this library default to 0.01.
        eps: added to the root of the second moment.

    Source: Loshchilov and Hutter 2019.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    eps: float = 1e-8

    def __call__(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these weights; the loop sets its rate."""
        return torch.optim.AdamW(
            weights, lr=0.0, betas=self.betas, weight_decay=self.weight_decay, eps=self.eps, fused=True
        )
