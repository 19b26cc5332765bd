"""Images of which a part is made anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from ldmkit.composition import label_of
from ldmkit.conditioners.spatial import masked_image
from ldmkit.errors import CompositionError
from ldmkit.images import WHITE, Colour, read_images, read_masks
from ldmkit.tasks.canvas import cropped, padded, pasted, rows
from ldmkit.tasks.condition import aligned, condition_for, framed, reframed, with_fills, with_takes
from ldmkit.tasks.contract import Frame, Inputs, Task
from ldmkit.tasks.fitting import Hiding, source_of

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion

OWN = ("masked_image", "mask")


@dataclass(frozen=True)
class Inpainting:
    """``image`` and ``mask_image``, white where the image is made anew, for any model.

    A model that reads masks is told the mask, 1 from 0.5 on, and the image with its hole filled as in training. Any
    other keeps the known part in its estimate (:func:`ldmkit.guidance.keep_known`). With ``paste``, which is on unless
    it is set to False, known pixels are put into the result to the bit and a soft mask blends; without it the result is
    what the first stage decoded. A size that the model cannot do is padded by repeating the border, and cut back.

    Args:
        hole: the value in [-1, 1] that fills the hole before it is encoded; None: the model reads no mask.
        channels: of the model's images.
        background: what transparency is laid on, in [0, 1].
        condition: what fills the model's other keys; None: the task that does.

    Source: arXiv 2112.10752, section 4.5.
    """

    hole: float | None = None
    channels: int = 3
    background: Colour = WHITE
    condition: Task | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """The image, the mask, and what the condition takes."""
        return with_takes(("image", "mask_image", "paste"), self.condition)

    @property
    def fills(self) -> tuple[str, ...]:
        """The masked image and the mask, where the model reads them, and what the condition fills."""
        return with_fills(() if self.hole is None else OWN, self.condition)

    def fitted(self, model: LatentDiffusion) -> Self:
        """With the model's channels and hole, and the task that fills what else it reads."""
        return replace(
            self,
            hole=_hole(model),
            channels=model.stage.image_channels,
            condition=condition_for(self.condition, model, OWN),
        )

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """The image and the mask, padded; what to keep; how to put the known pixels back."""
        image, mask = self._read(inputs)
        ready, hidden = padded(image, model.multiple), padded(mask, model.multiple)
        size = (ready.shape[2], ready.shape[3])
        own = {"image": ready, "mask_image": hidden}
        frame = reframed(framed(self.condition, inputs, model), own, size)
        count = max(map(len, self.prepare(frame.inputs).values()), default=len(ready))
        if self.hole is None:
            frame = replace(frame, known=rows(ready, count) * 2 - 1, mask=rows(hidden, count))
        frame = replace(frame, shown=(image.shape[2], image.shape[3]))
        cut = partial(cropped, size=(image.shape[2], image.shape[3]))
        if not _pastes(inputs):
            return replace(frame, finish=cut)
        return replace(frame, finish=lambda made: pasted(cut(made), image, mask))

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """``masked_image`` (B, C, H, W) in [-1, 1] and ``mask`` (B, 1, H, W) of 0 and 1, and the condition's batch.

        Raises:
            ValueError, TypeError: no image or mask, sizes that differ, or what the condition refuses.
        """
        image, mask = self._read(inputs)
        _pastes(inputs)
        told_by = {} if self.condition is None else self.condition.prepare(inputs)
        batch = aligned({"image": image, "mask": (mask >= 0.5).float(), **told_by})
        if self.hole is not None:
            batch["masked_image"] = masked_image(batch["image"] * 2 - 1, batch["mask"], self.hole)
        return {key: batch[key] for key in self.fills}

    def _read(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) and mask (B, 1, H, W), both in [0, 1] and as many."""
        for name, says in (("image", "the image to keep a part of"), ("mask_image", "white where it is made anew")):
            if inputs.get(name) is None:
                raise ValueError(f"task 'inpainting' needs {name}=: {says}")
        image = read_images(inputs["image"], "image", self.channels, self.background)
        mask = read_masks(inputs["mask_image"], "mask_image")
        if len(image) == 1 and len(mask) in (3, 4) and not isinstance(inputs["mask_image"], list | tuple):
            raise ValueError(
                f"mask_image has {len(mask)} planes for one image: a colour picture, or {len(mask)} masks? Give one "
                "plane, mask[:1], or a list of masks"
            )
        if image.shape[2:] != mask.shape[2:]:
            raise ValueError(
                f"mask_image is {mask.shape[2]} x {mask.shape[3]} (height x width) and image {image.shape[2]} x "
                f"{image.shape[3]}: resize the mask"
            )
        both = aligned({"image": image, "mask_image": mask})
        return both["image"], both["mask_image"]


def _hole(model: LatentDiffusion) -> float | None:
    source = source_of(model, "masked_image")
    if source is not None and not isinstance(source, Hiding):
        raise CompositionError(
            f"conditioner {label_of(source)} reads a masked image and does not say what fills the hole: give it an "
            "attribute 'hole' in [-1, 1]"
        )
    return None if source is None else source.hole


def _pastes(inputs: Inputs) -> bool:
    paste = inputs.get("paste")
    if paste is not None and not isinstance(paste, bool):
        raise TypeError(f"paste must be True or False, got {paste!r:.60}")
    return paste is not False
