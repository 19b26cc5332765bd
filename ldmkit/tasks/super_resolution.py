"""Large images of small ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ldmkit.images import WHITE, Colour, read_images
from ldmkit.noise import Noise
from ldmkit.tasks.canvas import cropped, padded
from ldmkit.tasks.condition import aligned, condition_for, framed, reframed, with_fills, with_takes
from ldmkit.tasks.contract import Frame, Inputs, Task
from ldmkit.tasks.fitting import NoiseLevelled, source_of

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion

NOISE_LEVEL = 20
DRAWN = -1
"""The level that stands for "to be drawn", as in training."""


@dataclass(frozen=True)
class SuperResolution:
    """``image``, the small one, of any size; the result is larger by the first stage's factor.

    In training, where ``image`` is the large one, the record has the small one as ``low_res``. A size that the model
    cannot do is padded by repeating the border, and the result is cut back. A model that reads its small image noised
    also takes ``noise_level``: one for all or one each, 20 where it is left out; in training it is drawn.

    Args:
        channels: of the small image.
        background: what transparency is laid on, in [0, 1].
        noise_levels: how many levels of noise the model knows; None: it reads none.
        trained_below: training draws levels below this one.
        condition: what fills the model's other keys; None: the task that does.

    Source: arXiv 2112.10752, section 4.4; the upscaler of Stable Diffusion for the noise.
    """

    channels: int = 3
    background: Colour = WHITE
    noise_levels: int | None = None
    trained_below: int = 350
    condition: Task | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """The small image, its noise level where the model reads one, and what the condition takes."""
        own = ("image", "low_res") if self.noise_levels is None else ("image", "low_res", "noise_level")
        return with_takes(own, self.condition)

    @property
    def fills(self) -> tuple[str, ...]:
        """``low_res``, its noise level where the model reads one, and what the condition fills."""
        own = ("low_res",) if self.noise_levels is None else ("low_res", "noise_level")
        return with_fills(own, self.condition)

    @property
    def draws(self) -> tuple[str, ...]:
        """The noise of the small image, where the model reads it noised."""
        return () if self.noise_levels is None else ("low_res_noise",)

    def fitted(self, model: LatentDiffusion) -> Self:
        """With the model's channels and noise levels, and the task that fills what else it reads."""
        source = source_of(model, "low_res")
        condition = condition_for(self.condition, model, ("low_res", "noise_level"))
        fitted = replace(self, channels=model.stage.image_channels, condition=condition)
        if not isinstance(source, NoiseLevelled):
            return fitted
        return replace(fitted, noise_levels=source.levels, trained_below=source.trained_below)

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """The small image, padded; the size of the large one; cutting back."""
        if inputs.get("image") is not None and inputs.get("low_res") is not None:
            raise ValueError("image= and low_res= are two names of the small image: give one of the two")
        image = self._read(inputs)
        factor = model.stage.factor
        ready = padded(image, model.multiple // factor)
        own: dict[str, Any] = {"low_res": ready, "image": None}
        if self.noise_levels is not None:
            given = inputs.get("noise_level")
            own["noise_level"] = min(NOISE_LEVEL, self.noise_levels - 1) if given is None else given
        frame = reframed(framed(self.condition, inputs, model), own, (ready.shape[2] * factor, ready.shape[3] * factor))
        large = (image.shape[2] * factor, image.shape[3] * factor)
        return replace(frame, shown=large, finish=partial(cropped, size=large))

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """``low_res`` (B, C, h, w) in [-1, 1], ``noise_level`` (B,) int64 with -1 for one to draw, and the condition's.

        Raises:
            ValueError, TypeError: no image, a level out of range, or what the condition refuses.
        """
        batch: dict[str, Any] = {"low_res": self._read(inputs) * 2 - 1}
        if self.noise_levels is not None:
            batch["noise_level"] = _levels(inputs.get("noise_level"), self.noise_levels)
        return aligned({**batch, **({} if self.condition is None else self.condition.prepare(inputs))})

    def noised(self, batch: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
        """With ``low_res_noise``, and with levels drawn in [0, trained_below) where they are to be."""
        if self.noise_levels is None:
            return dict(batch)
        low_res, level = batch["low_res"], batch["noise_level"]
        drawn = (noise.on("noise level").uniform().double() * self.trained_below).long().to(level.device)
        return {
            **batch,
            "noise_level": torch.where(level == DRAWN, drawn, level),
            "low_res_noise": noise.on("low res").constant(low_res),
        }

    def _read(self, inputs: Inputs) -> Tensor:
        name = "image" if inputs.get("low_res") is None else "low_res"
        if inputs.get(name) is None:
            raise ValueError("task 'super-resolution' needs image=: the small image (in training low_res=)")
        return read_images(inputs[name], name, self.channels, self.background)


def _levels(given: Any, count: int) -> Tensor:  # noqa: ANN401
    """(B,) int64."""
    if given is None:
        return torch.tensor([DRAWN])
    listed = given.tolist() if isinstance(given, Tensor) else given
    try:
        levels = [index(one) for one in (listed if isinstance(listed, list | tuple) else [listed])]
    except TypeError as error:
        raise TypeError(f"noise_level must be a whole number or a list of them, got {given!r:.60}") from error
    if not levels or not all(0 <= level < count for level in levels):
        raise ValueError(f"noise_level must lie in [0, {count - 1}], one for all or one each, got {given!r:.60}")
    return torch.tensor(levels)
