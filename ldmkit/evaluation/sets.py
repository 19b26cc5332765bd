"""Sets of images to be judged or to judge by: what a model makes, what data hold, what lies in a folder.

A set knows its images by number and says in words what it is, for the report. Every image is rounded to 8 bits, as a
file would hold it, so that a model and the folder of what it made give the same numbers.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldmkit.calls import Callback
from ldmkit.data.folders import list_images
from ldmkit.errors import OptionError
from ldmkit.evaluation.digest import digest_of
from ldmkit.images import open_image, read_images
from ldmkit.model import LatentDiffusion
from ldmkit.pipelines import Output, Pipeline
from ldmkit.registry import build
from ldmkit.training.parallel import rank, world


class Images(Protocol):
    """A set of images."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, places: Sequence[int]) -> Tensor:
        """The images of these numbers, (B, 3, H, W) uint8 on the CPU; the same whichever are asked for together."""

    def facts(self) -> dict[str, Any]:
        """What the set is, as plain data for the report."""


class Records(Protocol):
    """Anything with a length and an index that gives records, as training takes them."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> Mapping[str, Any]: ...


class Targets:
    """The images of data: real ones, or the truth that results are compared with.

    Args:
        data: records; an image is anything that a pipeline takes.
        key: where a record has its image.
        name: what the report calls the data; the type's name if empty.
    """

    def __init__(self, data: Records, key: str = "target", name: str = "") -> None:
        self.data = data
        self.key = key
        self.name = name or type(data).__name__

    def __len__(self) -> int:
        return len(self.data)

    def read(self, places: Sequence[int]) -> Tensor:
        """The images of these records.

        Raises:
            KeyError: a record without an image.
            ValueError: an image that cannot be read, is out of range, or differs in size from the first.
        """
        return as_bytes([self._image(place) for place in places], self.key)

    def facts(self) -> dict[str, Any]:
        """Which data and how many."""
        return {"kind": "targets", "data": self.name, "key": self.key, "count": len(self)}

    def _image(self, place: int) -> object:
        record = self.data[place]
        if self.key not in record:
            raise KeyError(f"record {place} has no {self.key!r}, it has {sorted(record)}: say key= where the image is")
        return record[self.key]


class Folder:
    """The pictures in a folder and the folders in it, in the order of their paths.

    Args:
        path: the folder.
        size: (H, W) that every picture is brought to: cut to the shape about its centre, then resampled by Pillow's
            antialiased bicubic filter. None: as they are.

    Raises:
        ValueError: no such folder, no pictures in it, or other files.
    """

    def __init__(self, path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> None:
        self.path = os.fspath(path)
        self.size = size
        self.files = list_images(path)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, places: Sequence[int]) -> Tensor:
        """The pictures of these numbers.

        Raises:
            ValueError: one that cannot be read, or one of another size than the first, where ``size`` is None.
        """
        pictures = [open_image(self.files[place]) for place in places]
        if self.size is not None:
            height, width = self.size
            filtered = Image.Resampling.BICUBIC
            pictures = [ImageOps.fit(one.convert("RGB"), (width, height), filtered) for one in pictures]
        for one, place in zip(pictures, places, strict=True):
            if one.size != pictures[0].size:
                raise ValueError(
                    f"'{self.files[place]}' has {one.width} x {one.height} pixels and '{self.files[places[0]]}' "
                    f"{pictures[0].width} x {pictures[0].height}: give Folder(path, size=(H, W))"
                )
        return as_bytes(pictures, self.path)

    def facts(self) -> dict[str, Any]:
        """The folder, how many, and how they are resized."""
        resized = None if self.size is None else "centre crop, Pillow bicubic (antialiased)"
        return {"kind": "folder", "path": self.path, "count": len(self), "size": self.size, "resized": resized}


class Samples:
    """What a pipeline makes of records, one image each; image i has the seed ``seed + i`` whoever makes it.

    Args:
        pipe: the pipeline.
        records: its inputs by keyword, as training data have them; what the task does not take is left out. Where the
            task takes nothing, ``[{}] * count``.
        seed: of the first image.
        options: every other keyword of the call, such as ``{"num_inference_steps": 25, "guidance_scale": 2.0}``.

    Raises:
        OptionError: an option that evaluation sets itself.
    """

    def __init__(
        self, pipe: Pipeline, records: Records, seed: int = 0, options: Mapping[str, Any] | None = None
    ) -> None:
        self.pipe = pipe
        self.records = records
        self.seed = seed
        self.options = dict(options or {})
        own = {
            "seed",
            "generator",
            "latents",
            "num_images_per_prompt",
            "output_type",
            "callback_on_step_end",
            "previews",
        }
        if found := sorted(own & self.options.keys()):
            raise OptionError(
                f"options= may not hold {', '.join(found)}: an image has the seed of its number, seed + i"
            )

    def __len__(self) -> int:
        return len(self.records)

    def read(self, places: Sequence[int]) -> Tensor:
        """Make the images of these numbers.

        Raises:
            ValueError, TypeError, OptionError: as the pipeline does.
        """
        return as_bytes(self.call(places).images, "the pipeline's images")

    def call(self, places: Sequence[int], callback: Callback | None = None) -> Output:
        """The pipeline's own answer for these numbers, with images (B, C, H, W) in [0, 1]."""
        rows = [self.records[place] for place in places]
        keys = [key for key in rows[0] if key in self.pipe.task.takes]
        inputs = {key: [row[key] for row in rows] for key in keys}
        return self.pipe(
            **{"progress": False, **self.options, **inputs},
            seed=[self.seed + place for place in places],
            output_type="pt",
            callback_on_step_end=callback,
        )

    def facts(self) -> dict[str, Any]:
        """Task, model by the digest of its weights, sampler, steps, guidance, seeds, count."""
        call = inspect.signature(Pipeline.__call__).parameters
        used = {name: call[name].default for name in ("sampler", "eta", "num_inference_steps", "guidance_scale")}
        used |= self.options
        if isinstance(used["sampler"], str):
            eta = {} if used["eta"] is None else {"eta": used["eta"]}
            used["sampler"] = repr(build("sampler", used["sampler"], **eta))
        return {
            "kind": "samples",
            "task": self.pipe.name.strip("'"),
            "model_sha256": digest_of(self.pipe.model),
            "seeds": f"{self.seed} + the image's number",
            "count": len(self),
            "call": {name: _plain(value) for name, value in used.items() if value is not None},
        }


class Reconstructions:
    """What a model's first stage makes of images: encoded, at the mean of the posterior, and decoded.

    Args:
        model: whose first stage.
        images: the set that is reconstructed.
    """

    def __init__(self, model: LatentDiffusion, images: Images) -> None:
        self.model = model
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, places: Sequence[int]) -> Tensor:
        """Reconstruct the images of these numbers."""
        pixels = self.images.read(places)[:, : self.model.stage.image_channels].float() / 127.5 - 1
        made = self.model.decode(self.model.encode(pixels.to(self.model.device)))
        return as_bytes((made / 2 + 0.5).clamp(0, 1), "the reconstructions")

    def facts(self) -> dict[str, Any]:
        """Which first stage, of which images."""
        stage = digest_of(self.model.first_stage)
        return {"kind": "reconstructions", "first_stage_sha256": stage, "of": self.images.facts(), "count": len(self)}


def as_bytes(images: object, name: str) -> Tensor:
    """Images in any form the pipeline takes -> (B, 3, H, W) uint8 on the CPU, rounded; grey is repeated.

    Raises:
        ValueError: out of [0, 1], not finite, or of several sizes.
    """
    return (read_images(images, name) * 255).round().to(torch.uint8)


def shares(count: int, batch: int) -> Iterator[list[int]]:
    """The numbers that this process is to read, in batches: every ``world()``-th of ``count``.

    Raises:
        ValueError: an empty batch.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    mine = range(rank(), count, world())
    return (list(mine[start : start + batch]) for start in range(0, len(mine), batch))


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) else repr(value)
