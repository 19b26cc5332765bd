"""Images that begin from an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from ldmkit.images import WHITE, Colour, read_images
from ldmkit.tasks.canvas import cropped, padded, rows
from ldmkit.tasks.condition import aligned, condition_for, framed, reframed, with_fills, with_takes
from ldmkit.tasks.contract import Frame, Inputs, Task

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion

STRENGTH = 0.8


@dataclass(frozen=True)
class ImageToImage:
    """``image`` and ``strength`` in (0, 1]: the last share of the trajectory is run from the noised image.

    A model of prompts, classes, layouts, label maps or of nothing can, others with a ``condition`` of theirs: what is
    read beside the image is the model's own. A size that it cannot do is padded by repeating the border, and the result
    is cut back. In training the batch is the condition's.

    Args:
        channels: of the model's images.
        background: what transparency is laid on, in [0, 1].
        condition: what fills the model's keys; None: the task that does.

    Source: Meng et al. 2022 (SDEdit), section 3.
    """

    channels: int = 3
    background: Colour = WHITE
    condition: Task | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """The image, the strength, and what the condition takes."""
        return with_takes(("image", "strength"), self.condition)

    @property
    def fills(self) -> tuple[str, ...]:
        """What the condition fills."""
        return with_fills((), self.condition)

    def fitted(self, model: LatentDiffusion) -> Self:
        """With the model's channels and the task that fills what it reads."""
        return replace(
            self, channels=model.stage.image_channels, condition=condition_for(self.condition, model, own=())
        )

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """Where to start from, and with how much noise."""
        image = self._read(inputs)
        ready = padded(image, model.multiple)
        size = (ready.shape[2], ready.shape[3])
        frame = reframed(framed(self.condition, inputs, model), {"image": ready}, size)
        count = max(map(len, self.prepare(frame.inputs).values()), default=len(ready))
        return replace(
            frame,
            start=rows(ready, count) * 2 - 1,
            strength=_strength(inputs.get("strength")),
            shown=(image.shape[2], image.shape[3]),
            finish=partial(cropped, size=(image.shape[2], image.shape[3])),
        )

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """The condition's batch, as many as there are images.

        Raises:
            ValueError, TypeError: no image, a strength outside (0, 1], or what the condition refuses.
        """
        image = self._read(inputs)
        _strength(inputs.get("strength"))
        batch = aligned({"image": image, **(self.condition.prepare(inputs) if self.condition else {})})
        return {key: batch[key] for key in self.fills}

    def _read(self, inputs: Inputs) -> Tensor:
        if inputs.get("image") is None:
            raise ValueError("task 'image-to-image' needs image=: the image to begin from")
        return read_images(inputs["image"], "image", self.channels, self.background)


def _strength(given: object) -> float:
    strength = STRENGTH if given is None else given
    if isinstance(strength, bool) or not isinstance(strength, Real):
        raise TypeError(f"strength must be a number in (0, 1], got {strength!r:.60}")
    strength = float(strength)
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength}: 0 would be the image itself, 1 ignores it")
    return strength
