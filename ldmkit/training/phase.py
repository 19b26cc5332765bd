"""One phase of a step: forward, backward, and the decision whether to apply what came out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ldmkit.training.data import Portion
from ldmkit.training.ema import EMA
from ldmkit.training.order import hashed
from ldmkit.training.parallel import gathered, rank, summed, world
from ldmkit.training.power_ema import PowerEMA
from ldmkit.training.run import Run
from ldmkit.training.state import Learner

Taken = Sequence[tuple[dict[str, Any], Portion]]
"""The batches of a step, each with the portion it was made of."""


@dataclass(frozen=True)
class Outcome:
    """What came of one phase of one step; the same in every process.

    Args:
        loss: mean over the batch.
        norm: of the gradient, before it was clipped.
        stopping: whether some process was asked to stop.
        suspects: words on the samples, where loss or gradient is not finite and nothing was applied.
    """

    loss: float
    norm: float
    stopping: bool
    suspects: str | None = None


class Phase:
    """A module with its optimizer and averages, as it runs here.

    Args:
        name: of the phase.
        number: of the phase in the trainee's order.
        module: on its device; put in training mode.
        run: how to train.
        device: of the module.

    Raises:
        ValueError: no parameter requires a gradient.
    """

    def __init__(self, name: str, number: int, module: nn.Module, run: Run, device: torch.device) -> None:
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(f"phase '{name}' has nothing to train: no parameter of it requires a gradient")
        self.number = number
        self.module = module.train()
        self.run = run
        self.device = device
        self.spread = run.spread(module)
        weights = [p for p in module.parameters() if p.requires_grad]
        ema = None if run.ema is None else EMA(module, run.ema)
        power = None if run.profile is None else PowerEMA(module, run.profile)
        self.learner = Learner(name, module, run.optimizer(weights), ema, power)

    def learn(self, taken: Taken, step: int, stopping: bool) -> Outcome:
        """Take one step, unless the loss or the gradient is not finite, or the phase sits out.

        A phase whose loss has no gradient sits out: a discriminator before its start.
        """
        optimizer = self.learner.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.run.rate(step)
        optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(hashed(self.run.seed, step, rank(), self.number))
        losses = [self._backward(batch, portion, step, batch is taken[-1][0]) for batch, portion in taken]
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = self._norm(weights)
        loss = torch.stack([part.mean() for part in losses]).mean()
        numbers = summed(torch.stack([loss, norm.to(loss), torch.full_like(loss, stopping)]))
        mean, size, stop = numbers[0] / world(), numbers[1] / world(), numbers[2] > 0
        if not (math.isfinite(mean) and math.isfinite(size)):
            optimizer.zero_grad(set_to_none=True)
            return Outcome(mean, size, stop, _suspects(losses, [portion for _, portion in taken]))
        if weights:
            self._apply(weights, norm)
        return Outcome(mean, size, stop)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Evaluation mode with the averaged weights, all of them in every process."""
        ema = self.learner.ema
        with nullcontext() if ema is None else ema.swapped(self.module):
            self.module.eval()
            with self.spread.whole():
                yield
            self.module.train()

    def finish(self) -> None:
        """Leave the averaged weights in the module, whole and in evaluation mode, and a last snapshot."""
        if self.learner.power is not None and self.learner.power.updates:
            self.learner.power.snapshot(self._snapshots)
        if self.learner.ema is not None:
            self.learner.ema.copy_to(self.module)
        self.module.eval()
        self.spread.settle()

    def _backward(self, batch: dict[str, Any], portion: Portion, step: int, last: bool) -> Tensor:
        """The loss per sample of one portion, whose gradient is added to the weights'."""
        with self.spread.summing(last):
            with torch.autocast(self.device.type, self.run.precision, self.run.precision != torch.float32):
                loss = self.spread(batch, portion.seeds, step)
            if loss.shape != (len(portion.seeds),):
                raise ValueError(
                    f"phase '{self.learner.name}' gives a loss of shape {tuple(loss.shape)} for {len(portion.seeds)} "
                    "samples: it must be one number per sample"
                )
            if loss.requires_grad:
                (loss.mean() / self.run.accumulate).backward()  # type: ignore[no-untyped-call]
        return loss.detach().float()

    def _norm(self, weights: Sequence[nn.Parameter]) -> Tensor:
        norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _apply(self, weights: Sequence[nn.Parameter], norm: Tensor) -> None:
        if self.run.clip is not None:
            nn.utils.clip_grads_with_norm_(weights, self.run.clip, norm)
        self.learner.optimizer.step()
        if self.learner.ema is not None:
            self.learner.ema.update(self.module)
        if self.learner.power is not None:
            self.learner.power.update(self.module)
            if self.learner.power.updates % self.learner.power.profile.every == 0:
                self.learner.power.snapshot(self._snapshots)

    @property
    def _snapshots(self) -> Path:
        return Path(self.run.out) / "profiles" / self.learner.name


def _suspects(losses: Sequence[Tensor], portions: Sequence[Portion]) -> str:
    """Which samples of the data are to blame, over all processes."""
    own = [
        place
        for loss, portion in zip(losses, portions, strict=True)
        for place, finite in zip(portion.places, loss.isfinite().tolist(), strict=True)
        if not finite
    ]
    bad = [place for places in gathered(own) for place in places]
    if bad:
        return f"the loss is not finite for the samples {bad} of the data"
    places = [place for places in gathered([p for portion in portions for p in portion.places]) for place in places]
    return f"the losses are finite and the gradient is not; the batch is the samples {places} of the data"


def moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on a device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
