"""The object a user calls: a task and a model.

>>> pipe = ldmkit.pipeline("class-conditional", "digits.safetensors")
>>> pipe(label=[3, 7], height=32, width=32, guidance_scale=2.0, seed=0).images[0].save("three.png")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmkit.component import did_you_mean
from ldmkit.composition import label_of
from ldmkit.errors import CompositionError, OptionError
from ldmkit.guidance import CFG, Guidance, NoGuidance
from ldmkit.model import LatentDiffusion
from ldmkit.process import Levels
from ldmkit.registry import build
from ldmkit.samplers.contract import AtStop, Sampler
from ldmkit.tasks.contract import Task


@dataclass(frozen=True)
class Output:
    """What a call gives.

    Args:
        images: PIL images, or an array / tensor (B, H, W, C) / (B, C, H, W) in [0, 1].
        latents: (B, c, h, w).
        levels: where the sampler stopped.
    """

    images: Any
    latents: Tensor
    levels: Levels


class Pipeline:
    """A task and a model that fit each other.

    Args:
        task: what turns the user's inputs into a batch.
        model: what the batch is for.

    Raises:
        CompositionError: a conditioner reads what the task does not fill, or the reverse.
    """

    def __init__(self, task: Task, model: LatentDiffusion) -> None:
        _check_task(task, model)
        self.task = task
        self.model = model

    def __call__(
        self,
        *,
        height: int,
        width: int,
        num_inference_steps: int = 50,
        guidance_scale: float | Sequence[float] = 1.0,
        sampler: str | Sampler = "ddim",
        eta: float | None = None,
        seed: int | Sequence[int] = 0,
        num_images: int | None = None,
        levels: Levels | None = None,
        guidance: Guidance | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        at_stop: AtStop | None = None,
        **inputs: Any,  # noqa: ANN401 - the task's own keywords, checked against what it takes
    ) -> Output:
        """Make images.

        Args:
            height: of the images, in pixels.
            width: of the images, in pixels.
            num_inference_steps: steps of the process's customary levels, where ``levels`` is not given.
            guidance_scale: of classifier-free guidance, one number or one per image; 1 is off.
            sampler: a registered name or a sampler.
            eta: share of fresh noise, for a sampler that takes it.
            seed: one per image, or the first of a row.
            num_images: how many, where no input says it.
            levels: explicit levels.
            guidance: a guidance in place of ``guidance_scale``.
            latents: (B, c, h, w), the state to start from.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            at_stop: called as ``(x, now) -> x`` before each step.
            **inputs: what the task takes.

        Raises:
            OptionError: an unknown keyword, or one that the sampler cannot honour.
            ValueError: a value that does not fit; before any network runs.
        """
        self._check_keywords(inputs)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}")
        levels = self.model.process.levels(num_inference_steps) if levels is None else levels
        z = self.model.sample(
            self.task.prepare(inputs),
            size=(height, width),
            seed=seed,
            count=num_images,
            levels=levels,
            sampler=_sampler(sampler, eta),
            guidance=_guidance(guidance, guidance_scale),
            at_stop=at_stop,
            start=latents,
        )
        images = z if output_type == "latent" else as_images(self.model.decode(z), output_type)
        return Output(images, z, levels)

    def _check_keywords(self, inputs: dict[str, Any]) -> None:
        for name in inputs:
            if name not in self.task.takes:
                own = [key for key in Pipeline.__call__.__annotations__ if key not in ("inputs", "return")]
                near = did_you_mean(name, [*own, *self.task.takes])
                takes = ", ".join(self.task.takes) or "no inputs"
                raise OptionError(f"unknown keyword '{name}'{near}; task {label_of(self.task)} takes {takes}")


def pipeline(
    task: str | Task,
    model: str | os.PathLike[str] | LatentDiffusion,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Pipeline:
    """A pipeline from a task's name and a model or the file of one.

    Raises:
        CompositionError: task and model do not fit.
        CheckpointError: the file is not one of ours.
    """
    from ldmkit.weights.native import load

    built: Task = build("task", task) if isinstance(task, str) else task
    if isinstance(model, LatentDiffusion):
        return Pipeline(built, model.to(device) if dtype is None else model.to(device).cast(dtype))
    return Pipeline(built, load(model, device, dtype))


def as_images(x: Tensor, output_type: str) -> Any:  # noqa: ANN401 - as the type asks
    """Images in [-1, 1] to what the user wants in [0, 1], clamped: ``pt`` (B, C, H, W), ``np`` (B, H, W, C), ``pil``.

    Raises:
        ValueError: a value is not finite, which would become a black pixel; the message names the images.
    """
    bad = [i for i, finite in enumerate(x.isfinite().flatten(1).all(1).tolist()) if not finite]
    if bad:
        raise ValueError(f"images {bad} hold values that are not finite: run the first stage in float32 or bfloat16")
    images = (x.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    array = images.permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else [_pil(image) for image in array]


def _pil(image: np.ndarray[Any, np.dtype[np.float32]]) -> Image.Image:
    pixels = (image * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _sampler(sampler: str | Sampler, eta: float | None) -> Sampler:
    """The sampler with its eta; a sampler that takes none refuses it by name."""
    if isinstance(sampler, str):
        built: Sampler = build("sampler", sampler) if eta is None else build("sampler", sampler, eta=eta)
        return built
    if eta is not None:
        raise OptionError(f"eta={eta} beside a sampler object: build the sampler with the eta it should have")
    return sampler


def _guidance(guidance: Guidance | None, scale: float | Sequence[float]) -> Guidance:
    if guidance is not None:
        if scale != 1.0:
            raise OptionError(f"guidance_scale={scale} beside a guidance object: give one of the two")
        return guidance
    if isinstance(scale, int | float):
        return CFG(float(scale)) if scale != 1 else NoGuidance()
    return CFG(tuple(scale))


def _check_task(task: Task, model: LatentDiffusion) -> None:
    reads = () if model.conditioner is None else model.conditioner.reads
    filled = {*task.fills, *(f"{key}_latent" for key in task.fills)}
    for key in reads:
        if key not in filled:
            raise CompositionError(
                f"the model's conditioner reads '{key}', which task {label_of(task)} does not fill (it fills "
                f"{list(task.fills)}): choose the task that belongs to the model"
            )
    for key in task.fills:
        if model.conditioner is None or key not in model.conditioner.may_read():
            raise CompositionError(
                f"task {label_of(task)} fills '{key}', which no conditioner of the model reads (they read "
                f"{list(reads)}): it would be ignored; choose the task that belongs to the model"
            )
