"""One call of a pipeline: the trajectory of its images, in parts that fit the device, watched step by step.

What a step may show (:class:`Step`), how a callback ends a call early (:class:`StopSampling`), and what happens when
values stop being finite or memory runs out. Nothing of a call outlives it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ldmkit.denoiser import Denoise
from ldmkit.errors import NonFiniteError
from ldmkit.guidance import Guidance, PerImage, keep_known
from ldmkit.model import LatentDiffusion
from ldmkit.noise import Noise
from ldmkit.process import Level, Levels
from ldmkit.samplers import Sampler, reverse
from ldmkit.tasks.contract import Frame, Noising, Task
from ldmkit.tiling import Tiles


class StopSampling(Exception):
    """Raised by a callback: the call ends here, with the estimate of the last step as its latents."""


@dataclass(frozen=True)
class Step:
    """One step that was done.

    Args:
        index: of the step, from 0.
        count: N, the number of steps.
        level: where the state is now.
        images: which images of the call these are; several parts of a call report apart.
        latents: (b, c, h, w), the state.
        estimate: (b, c, h, w), the network's estimate of the clean latents in this step.
    """

    index: int
    count: int
    level: Level[float]
    images: tuple[int, ...]
    latents: Tensor
    estimate: Tensor


Callback = Callable[[Step], Tensor | None]
"""Called after each step; a tensor that it returns is the state to go on with."""


@dataclass(frozen=True)
class Preview:
    """Estimates decoded on the way.

    Args:
        step: after which step, from 0.
        images: which images of the call.
        pixels: (b, C, H, W) in [0, 1], on the CPU.
    """

    step: int
    images: tuple[int, ...]
    pixels: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """Everything that one call of a pipeline fixed before any network ran; see :class:`ldmkit.Pipeline`.

    Args:
        rows: for each image, the row of the batch that it belongs to.
        trajectory: the levels it runs along, with the task's strength applied.
    """

    model: LatentDiffusion
    task: Task
    frame: Frame
    batch: Mapping[str, Any]
    negative: Mapping[str, Any] | None
    size: tuple[int, int]
    rows: tuple[int, ...]
    seeds: tuple[int, ...]
    trajectory: Levels
    sampler: Sampler
    inversion: Sampler | None
    guidance: Guidance
    latents: Tensor | None
    callback: Callback | None
    preview_every: int | None
    progress: bool
    tiles: Tiles | None
    decodes: bool

    def run(self, images: tuple[int, ...]) -> Done:
        """The trajectories of some of the images, and their pixels."""
        rows = [self.rows[i] for i in images]
        seeds = tuple(self.seeds[i] for i in images)
        batch = self._rows(self.batch, rows, seeds)
        whole = len(images) == len(self.seeds)  # then the guidance itself counts what it holds
        guidance = self.guidance.take(images) if isinstance(self.guidance, PerImage) and not whole else self.guidance
        with tqdm(total=len(self.trajectory), disable=not self.progress, leave=False) as bar:
            watch = _Watch(self, images, bar)
            try:
                z = self.model.sample(
                    batch,
                    size=self.size,
                    seed=seeds,
                    levels=self.trajectory,
                    sampler=self.sampler,
                    guidance=guidance,
                    negative=self._against(guidance, batch, rows),
                    wrap=self._wrap(rows, watch),
                    at_stop=watch.at_stop,
                    start=self._start(batch, images, rows, seeds),
                    tiles=self.tiles,
                )
                z = watch.end_step(z, self.trajectory.landing)
            except StopSampling:
                z = watch.estimated().clone()
        watch.check_finite(z)
        return Done(z, self._pixels(z, images) if self.decodes else None, tuple(watch.previews))

    def _against(self, guidance: Guidance, batch: Mapping[str, Any], rows: Sequence[int]) -> Mapping[str, Any] | None:
        if self.negative is None or not guidance.needs_uncond:  # a part whose scales are all 1
            return None
        return taken(self.negative, rows)

    def _rows(self, batch: Mapping[str, Any], rows: Sequence[int], seeds: tuple[int, ...]) -> Mapping[str, Any]:
        batch = taken(batch, rows)
        return self.task.noised(batch, Noise(seeds)) if isinstance(self.task, Noising) else batch

    def _pixels(self, z: Tensor, images: tuple[int, ...]) -> Tensor:
        decoded = self.model.decode(z, self.tiles)
        bad = [images[i] for i, finite in enumerate(_finite(decoded).tolist()) if not finite]
        if bad:
            raise NonFiniteError(
                f"the first stage gave values that are not finite for images {bad}: run it in float32 or bfloat16"
            )
        return _unit(decoded)

    def preview(self, z: Tensor) -> Tensor:
        """Estimates to pixels in [0, 1], on the CPU; what is not finite is said at the end of the call."""
        return _unit(self.model.decode(z, self.tiles)).cpu()

    def _start(
        self, batch: Mapping[str, Any], images: tuple[int, ...], rows: Sequence[int], seeds: tuple[int, ...]
    ) -> Tensor | None:
        """The state at the first level, where it is not drawn: given, or made from the task's image."""
        if self.latents is not None:
            return self.latents[list(images)]
        if self.frame.start is None:
            return None
        z = self.model.encode(self.frame.start[rows].to(self.model.device), tiles=self.tiles)
        if self.inversion is not None:
            return self.model.sample(
                batch,
                size=self.size,
                seed=seeds,
                levels=reverse(self.trajectory),
                sampler=self.inversion,
                start=z,
                tiles=self.tiles,
            )
        level = self.trajectory.start
        return level.alpha * z + level.sigma * Noise(seeds).on("start").constant(z)

    def _wrap(self, rows: Sequence[int], watch: _Watch) -> Callable[[Denoise], Denoise]:
        if self.frame.known is None or self.frame.mask is None:
            return watch.wrap
        known = self.model.encode(self.frame.known[rows].to(self.model.device), tiles=self.tiles)
        # A cell that touches the hole is regenerated whole.
        mask = F.adaptive_max_pool2d(self.frame.mask[rows].to(known), known.shape[-2:])
        return lambda denoise: watch.wrap(keep_known(denoise, known, mask))


@dataclass(frozen=True, eq=False)
class Done:
    """What some images of a call came to."""

    latents: Tensor
    pixels: Tensor | None
    previews: tuple[Preview, ...]


class _Watch:
    """Follows one trajectory: the estimate of each step, and the first step whose values were not finite.

    The device is asked once, at the end: a step never waits for it.
    """

    def __init__(self, call: Call, images: tuple[int, ...], bar: tqdm[Any]) -> None:
        self.call = call
        self.images = images
        self.bar = bar
        self.step = -1
        self.estimate: Tensor | None = None
        self.first_bad: Tensor | None = None
        self.previews: list[Preview] = []

    def wrap(self, denoise: Denoise) -> Denoise:
        def watched(x: Tensor, level: Level[float]) -> Tensor:
            x0 = denoise(x, level)
            self.estimate = x0
            bad = torch.where(_finite(x0.detach()), -1, self.step)
            self.first_bad = bad if self.first_bad is None else torch.where(self.first_bad < 0, bad, self.first_bad)
            return x0

        return watched

    def at_stop(self, x: Tensor, now: Level[float]) -> Tensor:
        x = x if self.step < 0 else self.end_step(x, now)
        self.step += 1
        return x

    def end_step(self, x: Tensor, level: Level[float]) -> Tensor:
        """A step was done: count it, show it, let the callback change the state."""
        self.bar.update()
        every = self.call.preview_every
        if every is not None and (self.step + 1) % every == 0:
            self.previews.append(Preview(self.step, self.images, self.call.preview(self.estimated())))
        if self.call.callback is None:
            return x
        count = len(self.call.trajectory)
        changed = self.call.callback(Step(self.step, count, level, self.images, x, self.estimated()))
        if changed is None:
            return x
        if not isinstance(changed, Tensor) or changed.shape != x.shape:
            shape = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise TypeError(f"callback_on_step_end returned {shape}; it returns None or a state {tuple(x.shape)}")
        return changed.to(x)

    def estimated(self) -> Tensor:
        """The estimate of the step that was just done."""
        if self.estimate is None:
            raise RuntimeError("no step was done yet")
        return self.estimate.detach()

    def check_finite(self, z: Tensor) -> None:
        steps = [] if self.first_bad is None else self.first_bad.tolist()
        bad = {image: step for image, step in zip(self.images, steps, strict=False) if step >= 0}
        if bad:
            said = ", ".join(f"image {image} from step {step}" for image, step in bad.items())
            raise NonFiniteError(
                f"the network gave values that are not finite ({said}, of {len(self.call.trajectory)}): run it in "
                "float32 or bfloat16, or lower the guidance"
            )
        changed = [image for image, finite in zip(self.images, _finite(z).tolist(), strict=True) if not finite]
        if changed:
            raise NonFiniteError(
                f"the network's estimates are finite and the last state of images {changed} is not: look at what "
                "callback_on_step_end returns"
            )


def in_parts(call: Call, most: int | None) -> tuple[Tensor, Tensor | None, tuple[Preview, ...]]:
    """Run a call, so many images at a time; when the device runs out of memory, half as many.

    Returns:
        latents, pixels in [0, 1] (None where none were asked for), and previews.

    Raises:
        torch.OutOfMemoryError: one image alone does not fit.
    """
    count = len(call.seeds)
    size = count if most is None else min(most, count)
    done: list[Done] = []
    begin = 0
    while begin < count:
        part = tuple(range(begin, min(begin + size, count)))
        found = _attempt(call, part)
        if found is None:
            size = (len(part) + 1) // 2
            gc.collect()
            continue
        done.append(found)
        begin += len(part)
    pixels = [part.pixels for part in done if part.pixels is not None]
    previews = tuple(preview for part in done for preview in part.previews)
    return torch.cat([part.latents for part in done]), torch.cat(pixels) if pixels else None, previews


def _attempt(call: Call, part: tuple[int, ...]) -> Done | None:
    """None where memory ran out; the error and what it keeps alive are gone by then."""
    try:
        return call.run(part)
    except torch.OutOfMemoryError:
        if len(part) == 1:
            raise
    return None


def taken(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The rows of a batch; every key holds one entry per row, in a tensor or a sequence."""
    return {
        key: value[list(rows)] if isinstance(value, Tensor) else [value[row] for row in rows]
        for key, value in batch.items()
    }


def _unit(image: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped."""
    return (image / 2 + 0.5).clamp(0, 1)


def _finite(x: Tensor) -> Tensor:
    """(B,) bool: whether all of an image is finite."""
    return x.isfinite().flatten(1).all(1)
