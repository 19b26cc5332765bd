"""The second stage as something the loop trains: a composed model on the records of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ldmkit.composition import label_of
from ldmkit.conditioning import Conditioner
from ldmkit.errors import BatchError, CompositionError
from ldmkit.images import read_images
from ldmkit.model import LatentDiffusion
from ldmkit.noise import Noise
from ldmkit.pipelines import pipeline
from ldmkit.tasks.contract import Noising, Task
from ldmkit.training.adapting import with_sources
from ldmkit.training.contract import Record
from ldmkit.training.lora import Adapter, save_adapter

PART = 16


class Denoising(nn.Module):
    """The one phase: the model's loss per sample."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Any], seeds: Sequence[int], step: int) -> Tensor:
        """(B,), see :meth:`ldmkit.model.LatentDiffusion.forward`."""
        loss: Tensor = self.model(batch, seeds)
        return loss


class Diffusion:
    """A model that learns to denoise, on records of what its task takes and a ``target``.

    A record holds what the task takes, by the pipeline's keywords, and beside it the image that belongs to it: a
    ``target`` in any form :func:`ldmkit.images.read_images` reads; or ``latent`` (c, h, w), scaled, with or without
    ``latent_std`` (c, h, w), what a posterior draw adds to it. Further keys are not read.

    Args:
        model: on the device it is to be trained on. Its first stage is frozen; of everything else the parameters that
            require gradients are trained.
        task: a registered name, or a task.
        samples: keywords of a pipeline's call, whose images are written at an interval; None: none.
        measure: samples from which the scale of the latents is measured before the first step; 0: it stays as it is.
        encodings: source -> what stands in for it while the model trains, see
            :func:`ldmkit.training.encodings.cache_encodings`. The source itself is in evaluation mode and may be on
            another device; samples and the exported file are of the model with its own sources.
        adapter: what :func:`ldmkit.training.lora.adapt` put on the model: it alone is written. None: the model is.

    Raises:
        CompositionError: task and model do not fit, ``encodings`` names a source that the model does not have, or the
            model has an adapter that is not given here.
        ValueError: a scale to be measured for a first stage that has none; when it is measured, latents encoded before.

    Source: Rombach et al. 2022, section 3.2; the scale: section D.1.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        task: str | Task,
        samples: Mapping[str, Any] | None = None,
        measure: int = 0,
        encodings: Mapping[str, Conditioner] | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.pipe = pipeline(task, model)
        self.model = model
        self.samples = samples
        self.measure = measure
        if measure and _scale(model) is None:
            raise ValueError(
                f"first stage {label_of(model.stage)} has no scale that measure={measure} samples could set: measure=0"
            )
        self.adapter = adapter
        if adapter is None:
            _check_written(model)
        model.first_stage.requires_grad_(False)
        taught = _with_encodings(model, encodings) if encodings else model
        self.phases: Mapping[str, nn.Module] = {"diffusion": Denoising(taught)}

    @torch.no_grad()
    def begin(self, read: Callable[[int], Sequence[Record]]) -> None:
        """Set the first stage's scale so that the latents of the first samples have a standard deviation of 1."""
        scale = _scale(self.model)
        if scale is None or not self.measure:
            return
        records, total, squares, count = read(self.measure), 0.0, 0.0, 0
        if "latent" in records[0]:
            raise ValueError(
                f"measure={self.measure} would change the scale of a first stage that has encoded the latents already: "
                "measure before they are encoded, with ldmkit.latents.latent_statistics"
            )
        for first in range(0, len(records), PART):
            part = records[first : first + PART]
            z = self._latents(part, Noise(tuple(range(first, first + len(part))))).double()
            total, squares, count = total + float(z.sum()), squares + float(z.square().sum()), count + z.numel()
        deviation = ((squares - total**2 / count) / (count - 1)) ** 0.5
        scale.div_(deviation)

    def prepare(self, records: Sequence[Record], seeds: Sequence[int]) -> dict[str, Any]:
        """What the task makes of the records, and ``image`` in [-1, 1] or ``latent``.

        Raises:
            BatchError: a record without what the task takes, or without a target.
        """
        task, noise = self.pipe.task, Noise(tuple(seeds))
        batch = told(records, task)
        if isinstance(task, Noising):
            batch = task.noised(batch, noise.on("condition"))
        if "latent" in records[0]:
            return {**batch, "latent": _stored(records, noise)}
        return {**batch, "image": self._images(records)}

    def show(self, step: int) -> dict[str, Tensor]:
        """``samples``: the images of the same inputs and seeds every time."""
        if self.samples is None:
            return {}
        return {"samples": self.pipe(**{**self.samples, "output_type": "pt", "progress": False}).images}

    def export(self, path: Path, notes: Mapping[str, Any]) -> None:
        """Write the model, see :meth:`ldmkit.model.LatentDiffusion.save`, or its adapter alone."""
        if self.adapter is None:
            self.model.save(path, notes)
        else:
            save_adapter(self.model, self.adapter, path)

    def _images(self, records: Sequence[Record]) -> Tensor:
        return read_images(_column(records, "target"), "target", self.model.stage.image_channels) * 2 - 1

    def _latents(self, records: Sequence[Record], noise: Noise) -> Tensor:
        image = self._images(records)
        like = image.new_empty(len(image), *self.model.latent_shape((image.shape[2], image.shape[3])))
        device = self.model.device
        return self.model.encode(image.to(device), noise.on("posterior").constant(like).to(device))


def _check_written(model: LatentDiffusion) -> None:
    """Refuse before the first step what could not be exported after the last."""
    adapted = [name for name, module in model.named_modules() if parametrize.is_parametrized(module)]
    if adapted:
        raise CompositionError(
            f"{len(adapted)} layers have an adapter, '{adapted[0]}' for one, and no recipe builds such a model: give "
            "the adapter as adapter=, to be written alone, or merge it before"
        )


def told(records: Sequence[Record], task: Task) -> dict[str, Any]:
    """What a task makes of what records tell it.

    Raises:
        BatchError: a record without what the first one has.
    """
    return task.prepare({name: _column(records, name) for name in task.takes if name in records[0]})


def _with_encodings(model: LatentDiffusion, encodings: Mapping[str, Conditioner]) -> LatentDiffusion:
    """The model with others in the place of some sources; everything else is shared with it."""
    sources = {} if model.conditioner is None else dict(model.conditioner.sources.items())
    for name in encodings:
        if name not in sources:
            raise CompositionError(f"there are encodings of '{name}', and the model's sources are {list(sources)}")
        sources[name].eval()
    return with_sources(model, encodings).to(model.device)


def _scale(model: LatentDiffusion) -> Tensor | None:
    """The one number by which a first stage brings its latents to unit deviation, where it has one to set."""
    return dict(model.first_stage.named_buffers(recurse=False)).get("scale")


def _column(records: Sequence[Record], name: str) -> list[Any]:
    """One entry of every record."""
    for i, record in enumerate(records):
        if name not in record:
            raise BatchError(
                f"record {i} of a batch has no '{name}'; it has {sorted(record)}. A record holds what the task "
                "takes, and 'target', the image to be learned, or 'latent'"
            )
    return [record[name] for record in records]


def _stored(records: Sequence[Record], noise: Noise) -> Tensor:
    """Latents that were encoded before, drawn as the model would draw them now."""
    latent = torch.stack([torch.as_tensor(one).float() for one in _column(records, "latent")])
    if "latent_std" not in records[0]:
        return latent
    deviation = torch.stack([torch.as_tensor(one).float() for one in _column(records, "latent_std")])
    return latent + deviation * noise.on("posterior").constant(latent)
