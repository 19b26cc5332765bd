"""Shape scenes as a data set: record i is a function of (seed, split, i), in the words of the tasks.

    {"target": (3, side, side) in [0, 1], and what each view adds}

The views are ``prompt`` (the canonical caption), ``paraphrase`` (another one, also as ``prompt``), ``boxes``,
``segmentation``, ``low_res``, and ``mask_image`` with the ``image`` that it hides a part of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import index
from typing import Any, SupportsIndex

from torch import Tensor

from ldmkit.data.draws import Draws
from ldmkit.data.masks import MaskMaker, Mixed
from ldmkit.data.phrases import caption, paraphrase
from ldmkit.data.raster import check_side, label_map, reduced, render
from ldmkit.data.scenes import Scene, Split, draw_scene

Record = dict[str, Any]


@dataclass(frozen=True)
class ShapeScenes:
    """A data set of any length, of which nothing is stored.

    Args:
        length: how many scenes.
        side: of the images in pixels, 32 to 1024.
        split: ``train``, ``val``, ``test``, ``composition`` or ``count``; no scene is in two.
        seed: in [0, 2**64); another one gives other scenes of the same splits.
        views: what a record holds besides ``target``.
        factor: of ``low_res``; divides the side.
        masks: what draws ``mask_image``.

    Raises:
        ValueError: an unknown view, a side out of range or one that the factor does not divide.
    """

    length: int
    side: int = 64
    split: Split = "train"
    seed: int = 0
    views: tuple[str, ...] = ("prompt",)
    factor: int = 4
    masks: MaskMaker = field(default_factory=Mixed)

    def __post_init__(self) -> None:
        check_side(self.side)
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown:
            raise ValueError(f"shape scenes have the views {', '.join(VIEWS)}, got {', '.join(unknown)}")
        if "low_res" in self.views and (self.factor < 1 or self.side % self.factor):
            raise ValueError(f"low_res needs a factor that divides the side of {self.side} pixels, got {self.factor}")

    def __len__(self) -> int:
        return self.length

    def scene(self, place: SupportsIndex) -> Scene:
        """The scene of a record, to measure results against.

        Raises:
            IndexError: outside [0, length - 1].
        """
        i = index(place)
        if not 0 <= i < self.length:
            raise IndexError(f"shape scenes 0 to {self.length - 1}, got {i}")
        return draw_scene(self.seed, i, self.split)

    def __getitem__(self, place: SupportsIndex) -> Record:
        """The record of a scene.

        Raises:
            IndexError: outside [0, length - 1].
        """
        scene = self.scene(place)
        image = render(scene, self.side)
        record: Record = {"target": image.float() / 255}
        for view in self.views:
            record |= VIEWS[view](self, scene, image, index(place))
        return record


def _seed(data: ShapeScenes, view: str, place: int) -> int:
    """Of what a view draws for a record: independent of the scene and of the other views."""
    return Draws(data.seed, f"{view} {data.split} {place}").below(2**63)


def _prompt(data: ShapeScenes, scene: Scene, image: Tensor, place: int) -> Record:
    return {"prompt": caption(scene)}


def _paraphrase(data: ShapeScenes, scene: Scene, image: Tensor, place: int) -> Record:
    return {"prompt": paraphrase(scene, _seed(data, "paraphrase", place))}


def _boxes(data: ShapeScenes, scene: Scene, image: Tensor, place: int) -> Record:
    return {"boxes": scene.boxes}


def _segmentation(data: ShapeScenes, scene: Scene, image: Tensor, place: int) -> Record:
    return {"segmentation": label_map(scene, data.side)}


def _low_res(data: ShapeScenes, scene: Scene, image: Tensor, place: int) -> Record:
    return {"low_res": reduced(image, data.factor).float() / 255}


def _mask_image(data: ShapeScenes, scene: Scene, image: Tensor, place: int) -> Record:
    mask = data.masks((data.side, data.side), _seed(data, "mask", place))
    return {"image": image.float() / 255, "mask_image": mask}


View = Callable[[ShapeScenes, Scene, Tensor, int], Record]
VIEWS: dict[str, View] = {
    "prompt": _prompt,
    "paraphrase": _paraphrase,
    "boxes": _boxes,
    "segmentation": _segmentation,
    "low_res": _low_res,
    "mask_image": _mask_image,
}
