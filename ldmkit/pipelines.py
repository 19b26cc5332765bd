"""The object a user calls: a task and a model.

>>> pipe = ldmkit.pipeline("class-conditional", "digits.safetensors")
>>> pipe(label=[3, 7], height=32, width=32, guidance_scale=2.0, seed=0).images[0].save("three.png")

The task reads the inputs and makes the batch; the model samples; the task finishes the images. Nothing of a call is
kept on the pipeline, so that threads share one and an interrupted call leaves it as it was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from operator import index
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from ldmkit.calls import Call, Callback, Preview, in_parts
from ldmkit.component import did_you_mean
from ldmkit.composition import check_call, label_of
from ldmkit.errors import CompositionError, OptionError
from ldmkit.guidance import CFG, Guidance, NoGuidance
from ldmkit.images import to_pil
from ldmkit.model import LatentDiffusion
from ldmkit.noise import Noise, seeds_from
from ldmkit.process import Levels
from ldmkit.registry import build
from ldmkit.samplers import reverse
from ldmkit.samplers.contract import Sampler
from ldmkit.tasks.contract import Fitting, Frame, Framing, Inputs, Noising, Task
from ldmkit.tiling import Tiles

OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Output:
    """What a call gives.

    Args:
        images: PIL images, or an array / tensor (B, H, W, C) / (B, C, H, W) in [0, 1]; the latents where those were
            asked for.
        latents: (B, c, h, w).
        seeds: one per image.
        levels: where the sampler stopped.
        previews: decoded estimates on the way, where they were asked for.
    """

    images: Any
    latents: Tensor
    seeds: tuple[int, ...]
    levels: Levels
    previews: tuple[Preview, ...] = ()


class Pipeline:
    """A task and a model that fit each other.

    Args:
        task: what turns the user's inputs into a batch.
        model: what the batch is for.

    Raises:
        CompositionError: a conditioner reads what the task does not fill, or the reverse.
    """

    def __init__(self, task: Task, model: LatentDiffusion) -> None:
        self.name = label_of(task)
        task = task.fitted(model) if isinstance(task, Fitting) else task
        check_task(task, model, self.name)
        self.task = task
        self.model = model

    def __call__(
        self,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | Sequence[float] = 1.0,
        sampler: str | Sampler = "ddim",
        eta: float | None = None,
        seed: SupportsIndex | Sequence[SupportsIndex] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        levels: Levels | None = None,
        guidance: Guidance | None = None,
        latents: Tensor | None = None,
        inversion: str | Sampler | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        previews: int | None = None,
        progress: bool = True,
        max_batch: int | None = None,
        tiles: Tiles | None = None,
        **inputs: Any,  # noqa: ANN401 - the task's own keywords, checked against what it takes
    ) -> Output:
        """Make images.

        Args:
            height: of the images, in pixels, where the inputs do not say it.
            width: of the images, in pixels, where the inputs do not say it.
            num_inference_steps: steps of the process's customary levels, where ``levels`` is not given.
            guidance_scale: of classifier-free guidance, one number or one per input; 1 is off.
            sampler: a registered name or a sampler.
            eta: share of fresh noise, for a sampler that takes it.
            seed: one per image, or the first of a row; None: 0, or drawn from ``generator``.
            generator: draws the seeds, in place of ``seed``: one for all, or one per image.
            num_images_per_prompt: images for each input.
            levels: explicit levels.
            guidance: a guidance in place of ``guidance_scale``.
            latents: (B, c, h, w), the state to start from.
            inversion: where the task starts from an image: the sampler that finds its noise, in place of a draw.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            callback_on_step_end: called with a :class:`ldmkit.calls.Step` after each step; a tensor that it returns is
                the state to go on with; :class:`ldmkit.calls.StopSampling` ends the call with the estimate so far.
            previews: decode the estimate after every so many steps.
            progress: show a progress bar.
            max_batch: most images at a time; None: all, and half as many whenever the device runs out of memory.
            tiles: sample and decode in overlapping windows of this size, where the whole does not fit.
            **inputs: what the task takes.

        Raises:
            OptionError: an unknown keyword, or one that the sampler, the guidance or the task cannot honour.
            ValueError, TypeError: a value that does not fit; before any network runs.
            NonFiniteError: the network or the decoder gave values that are not finite.
        """
        self._check_keywords(inputs)
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type must be one of {', '.join(map(repr, OUTPUTS))}, got {output_type!r}")
        frame = self.task.frame(inputs, self.model) if isinstance(self.task, Framing) else Frame(inputs)
        batch = self.task.prepare(frame.inputs)
        negative = None if frame.negative is None else self.task.prepare(frame.negative)
        negative = {key: negative[key] for key in frame.against or negative} if negative is not None else None
        items = items_of(batch, frame)
        seeds = _seeds(seed, generator, items, num_images_per_prompt)
        steps = _whole(num_inference_steps, "num_inference_steps")
        if levels is not None and not isinstance(levels, Levels):
            raise TypeError(f"levels= takes Levels, got {levels!r:.60}: a number of steps is num_inference_steps=")
        call = Call(
            model=self.model,
            task=self.task,
            frame=frame,
            batch=batch,
            negative=negative,
            size=_size(frame, height, width),
            rows=tuple(i * items // len(seeds) for i in range(len(seeds))),
            seeds=seeds,
            trajectory=_trajectory(levels or self.model.process.levels(steps), frame.strength),
            sampler=_sampler(sampler, eta),
            inversion=None if inversion is None else _sampler(inversion, None),
            guidance=_guidance(guidance, guidance_scale, items, len(seeds)),
            latents=None if latents is None else torch.as_tensor(latents),
            callback=callback_on_step_end,
            preview_every=previews,
            progress=progress,
            tiles=tiles,
            decodes=output_type != "latent",
        )
        _check(call, max_batch)
        z, pixels, seen = in_parts(call, max_batch)
        if pixels is None:
            return Output(z, z, seeds, call.trajectory, seen)
        finished = pixels if frame.finish is None else frame.finish(pixels)
        return Output(as_images(finished, output_type), z, seeds, call.trajectory, seen)

    def _check_keywords(self, inputs: Inputs) -> None:
        for name in inputs:
            if name not in self.task.takes:
                own = [key for key in Pipeline.__call__.__annotations__ if key not in ("inputs", "return")]
                near = did_you_mean(name, [*own, *self.task.takes])
                takes = ", ".join(self.task.takes) or "no inputs"
                raise OptionError(f"unknown keyword '{name}'{near}; task {self.name} takes {takes}")


def pipeline(
    task: str | Task,
    model: str | os.PathLike[str] | LatentDiffusion,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Pipeline:
    """A pipeline from a task's name and a model or the file of one.

    Args:
        task: a registered name, or a task.
        model: a composed model, or a file that :meth:`LatentDiffusion.save` wrote.
        device: where it runs; None: where the model is, and the CPU for a file.
        dtype: of the network and the conditioners; None: as they are.

    Raises:
        CompositionError: task and model do not fit.
        CheckpointError: the file is not one of ours.
    """
    from ldmkit.weights.native import load

    built: Task = build("task", task) if isinstance(task, str) else task
    if not isinstance(built, Task):
        raise TypeError(f"{built!r:.80} is not a task: ldmkit.build('task', name) builds one")
    if not isinstance(model, LatentDiffusion):
        return Pipeline(built, load(model, device or "cpu", dtype))
    model = model if device is None else model.to(device)
    return Pipeline(built, model if dtype is None else model.cast(dtype))


def as_images(images: Tensor, output_type: str) -> Any:  # noqa: ANN401 - as the type asks
    """Images (B, C, H, W) in [0, 1] as the user wants them: ``pt`` as they are, ``np`` (B, H, W, C), ``pil``."""
    if output_type == "pt":
        return images
    return to_pil(images) if output_type == "pil" else images.permute(0, 2, 3, 1).float().cpu().numpy()


def items_of(batch: Inputs, frame: Frame) -> int:
    """How many inputs there are: rows of the batch, or images to start from or keep."""
    rows = [len(value) for value in (*batch.values(), frame.start, frame.known, frame.mask) if value is not None]
    if len(set(rows)) > 1:
        raise ValueError(f"the inputs disagree on how many there are: {sorted(set(rows))}")
    return rows[0] if rows else 1


def _size(frame: Frame, height: int | None, width: int | None) -> tuple[int, int]:
    """(H, W), from the inputs or from the caller, who may repeat but not contradict them."""
    height = None if height is None else _whole(height, "height")
    width = None if width is None else _whole(width, "width")
    if frame.size is None:
        if height is None or width is None:
            raise ValueError("height= and width= are needed, in pixels: the inputs do not say how large the image is")
        return height, width
    shown = frame.shown or frame.size
    if (shown[0] if height is None else height, shown[1] if width is None else width) != shown:
        raise ValueError(
            f"height={height} and width={width} contradict the inputs, which make images of {shown[0]} x "
            f"{shown[1]}: leave them out, or resize the input"
        )
    return frame.size


def _seeds(
    seed: SupportsIndex | Sequence[SupportsIndex] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    items: int,
    each: int,
) -> tuple[int, ...]:
    """One seed per image; several seeds for a single input ask for as many images of it."""
    seed = seed.tolist() if isinstance(seed, Tensor | np.ndarray) and seed.ndim else seed
    if _whole(each, "num_images_per_prompt") < 1:
        raise ValueError(f"num_images_per_prompt must be at least 1, got {each}")
    if seed is not None and generator is not None:
        raise OptionError("seed= beside generator=: give one of the two")
    several = generator if isinstance(generator, Sequence) else seed if isinstance(seed, Sequence) else ()
    count = len(several) if items == each == 1 and several else items * each
    if generator is None:
        return seeds_from(0 if seed is None else seed, count)
    generators = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != count:
        raise ValueError(f"{count} images need one generator or {count}, got {len(generators)}")
    return tuple(int(torch.randint(2**63 - 1, (), generator=one, device=one.device)) for one in generators)


def _whole(number: object, name: str) -> int:
    """An integer.

    Raises:
        TypeError: it is none.
    """
    try:
        return index(number)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {number!r:.60}") from error


def _trajectory(levels: Levels, strength: float) -> Levels:
    """The last share ``strength`` of the steps, one at least."""
    return levels if strength == 1 else levels[len(levels) - max(1, int(len(levels) * strength)) :]


def _sampler(sampler: str | Sampler, eta: float | None) -> Sampler:
    """The sampler with its eta; a sampler that takes none refuses it by name."""
    if isinstance(sampler, str):
        built: Sampler = build("sampler", sampler) if eta is None else build("sampler", sampler, eta=eta)
        return built
    if eta is not None:
        raise OptionError(f"eta={eta} beside a sampler object: build the sampler with the eta it should have")
    return sampler


def _guidance(guidance: Guidance | None, scale: Any, items: int, count: int) -> Guidance:  # noqa: ANN401
    """The guidance; a list of scales holds one per input or one per image."""
    if guidance is not None:
        if not (isinstance(scale, Real) and float(scale) == 1):
            raise OptionError(f"guidance_scale={scale} beside a guidance object: give one of the two")
        return guidance
    if callable(scale):
        raise OptionError("guidance_scale= is a number or one per input; of the level it is guidance=CFG(function)")
    if isinstance(scale, Real) or (isinstance(scale, Tensor | np.ndarray) and scale.ndim == 0):
        return CFG(float(scale)) if float(scale) != 1 else NoGuidance()
    if not isinstance(scale, Sequence | Tensor | np.ndarray):
        raise TypeError(f"guidance_scale must be a number or a list of them, got {scale!r:.60}")
    if len(scale) not in (items, count):
        raise ValueError(f"guidance_scale has {len(scale)} entries for {items} inputs and {count} images")
    return CFG(tuple(float(one) for one in scale for _ in range(count // len(scale))))


def _check(call: Call, max_batch: int | None) -> None:
    """What can be refused before any network runs and is nobody else's to check."""
    if max_batch is not None and _whole(max_batch, "max_batch") < 1:
        raise ValueError(f"max_batch must be at least 1, got {max_batch}")
    if call.preview_every is not None and call.preview_every < 1:
        raise ValueError(f"previews= says after how many steps, at least 1, got {call.preview_every}")
    if call.negative is not None and not call.guidance.needs_uncond:
        raise OptionError("a negative prompt is compared with by guidance, which is off: give guidance_scale above 1")
    if call.inversion is not None and call.frame.start is None:
        raise OptionError("inversion= finds the noise of an image to start from, and this task starts from none")
    if call.latents is not None and call.frame.start is not None:
        raise OptionError("latents= beside an image to start from: give one of the two")
    Noise(call.seeds)
    check_call(call.sampler, call.guidance, call.trajectory, 1.0)
    if call.inversion is not None:
        check_call(call.inversion, NoGuidance(), reverse(call.trajectory), 1.0)
    shape = call.model.latent_shape(call.size)
    if call.latents is not None and call.latents.shape[0] == len(call.seeds) and call.latents.shape[1:] != shape:
        raise ValueError(
            f"latents= has shape {tuple(call.latents.shape)}; these images need {(len(call.seeds), *shape)}"
        )
    if call.latents is not None and call.latents.shape[0] != len(call.seeds):
        raise ValueError(f"latents= holds {call.latents.shape[0]} states for {len(call.seeds)} images")


def check_task(task: Task, model: LatentDiffusion, name: str) -> None:
    """Refuse a task that does not fill what the model reads, or fills what it does not read.

    Args:
        task: fitted to the model.
        model: what it is for.
        name: how messages call the task.

    Raises:
        CompositionError: a conditioner reads what the task does not fill, or the reverse.
    """
    reads = () if model.conditioner is None else model.conditioner.reads
    fills = (*task.fills, *(task.draws if isinstance(task, Noising) else ()))
    filled = {*fills, *(f"{key}_latent" for key in fills)}
    for key in reads:
        if key not in filled:
            raise CompositionError(
                f"the model's conditioner reads '{key}', which task {name} does not fill (it fills "
                f"{list(fills)}): choose the task that belongs to the model"
            )
    for key in fills:
        if model.conditioner is None or key not in model.conditioner.may_read():
            raise CompositionError(
                f"task {name} fills '{key}', which no conditioner of the model reads (they read "
                f"{list(reads)}): it would be ignored; choose the task that belongs to the model"
            )
