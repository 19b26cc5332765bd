"""Images continued beyond their border."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any, Self

import torch

from ldmkit.images import WHITE, Colour, read_images
from ldmkit.tasks.canvas import extended
from ldmkit.tasks.contract import Frame, Inputs, Task
from ldmkit.tasks.inpainting import Inpainting

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion

SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Outpainting:
    """``image``, and how many pixels to add: ``left``, ``top``, ``right``, ``bottom``, and ``expand`` for the others.

    It is inpainting of the larger image, and its known pixels are kept as there; a record that has its ``mask_image``
    already is taken as it is.

    Args:
        hole: the value in [-1, 1] that fills the unknown part; None: the model reads no mask.
        channels: of the model's images.
        background: what transparency is laid on, in [0, 1].
        condition: what fills the model's other keys; None: the task that does.
    """

    hole: float | None = None
    channels: int = 3
    background: Colour = WHITE
    condition: Task | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """The image, the sides, and what the condition takes."""
        inside = [key for key in self._inside.takes if key not in ("image", "mask_image")]
        return ("image", *SIDES, "expand", *inside)

    @property
    def fills(self) -> tuple[str, ...]:
        """As inpainting."""
        return self._inside.fills

    @property
    def _inside(self) -> Inpainting:
        return Inpainting(self.hole, self.channels, self.background, self.condition)

    def fitted(self, model: LatentDiffusion) -> Self:
        """As inpainting."""
        inside = self._inside.fitted(model)
        return replace(self, hole=inside.hole, channels=inside.channels, condition=inside.condition)

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """The larger image with its mask, as inpainting frames it."""
        return self._inside.frame(self._enlarged(inputs), model)

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """As inpainting, of the larger image.

        Raises:
            ValueError, TypeError: no image, no side to add to, or what inpainting refuses.
        """
        return self._inside.prepare(self._enlarged(inputs))

    def _enlarged(self, inputs: Inputs) -> Inputs:
        """``image`` and ``mask_image`` of the larger size."""
        if inputs.get("mask_image") is not None:
            return inputs
        if inputs.get("image") is None:
            raise ValueError("task 'outpainting' needs image=: the image to continue")
        added = _added(inputs)
        image = read_images(inputs["image"], "image", self.channels, self.background)
        H, W = image.shape[2:]
        left, top, right, bottom = added
        mask = torch.ones(1, 1, top + H + bottom, left + W + right)
        mask[:, :, top : top + H, left : left + W] = 0
        larger = extended(image, left=left, top=top, right=right, bottom=bottom)
        return {**inputs, "image": larger, "mask_image": mask}


def _added(inputs: Inputs) -> tuple[int, int, int, int]:
    """Pixels on each side, left, top, right, bottom."""
    rest = _pixels(inputs, "expand", 0)
    left, top, right, bottom = (_pixels(inputs, side, rest) for side in SIDES)
    if left == top == right == bottom == 0:
        raise ValueError(f"task 'outpainting' needs pixels to add: {'=, '.join(SIDES)}= or expand=")
    return left, top, right, bottom


def _pixels(inputs: Inputs, name: str, default: int) -> int:
    given = inputs.get(name)
    if given is None:
        return default
    try:
        pixels = index(given)
    except TypeError as error:
        raise TypeError(f"{name} must be a whole number of pixels, got {given!r:.60}") from error
    if pixels < 0:
        raise ValueError(f"{name} must be at least 0 pixels, got {pixels}: crop the image to make it smaller")
    return pixels
