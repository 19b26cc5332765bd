"""Images of a map of classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ldmkit.images import read_label_maps
from ldmkit.tasks.canvas import cropped, padded
from ldmkit.tasks.contract import Frame, Inputs
from ldmkit.tasks.fitting import classes_of, source_of

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion


@dataclass(frozen=True)
class SemanticSynthesis:
    """``segmentation``, the class of every pixel: what :func:`ldmkit.images.read_label_maps` reads.

    The image has the map's size, which may be larger than in training. A size that the model cannot do is padded by
    repeating the map's border, and the image is cut back.

    Args:
        classes: K; None: what the model's conditioner says.
        palette: the colour of each class, 0 to 255, for maps that are pictures in colours.
    """

    classes: int | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None

    takes = ("segmentation",)
    fills = ("segmentation",)

    def fitted(self, model: LatentDiffusion) -> Self:
        """With the model's number of classes."""
        return replace(self, classes=self.classes or classes_of(source_of(model, "segmentation"))[0])

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """The map, padded; the size; cutting back."""
        segmentation = self.prepare(inputs)["segmentation"]
        ready = padded(segmentation, model.multiple)
        H, W = segmentation.shape[-2:]
        finish = partial(cropped, size=(H, W))
        return Frame(
            {**inputs, "segmentation": ready}, size=(ready.shape[-2], ready.shape[-1]), shown=(H, W), finish=finish
        )

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """``segmentation`` as int64 (B, H, W), or float32 (B, K, H, W) in [0, 1].

        Raises:
            ValueError: no map, or one that does not fit the classes.
            TypeError: something that is no map.
        """
        if inputs.get("segmentation") is None:
            raise ValueError("task 'semantic-synthesis' needs segmentation=: the class of every pixel")
        return {"segmentation": read_label_maps(inputs["segmentation"], "segmentation", self.classes, self.palette)}
