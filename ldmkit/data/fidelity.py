"""How well images show what was asked for, counted and not estimated.

Every number comes from reading a scene back (:mod:`ldmkit.data.oracle`) and comparing it with the scene that the
condition was taken from; the ground truth itself scores perfectly. Images lie in [0, 1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ldmkit.data.oracle import read_scene
from ldmkit.data.phrases import caption
from ldmkit.data.raster import label_map
from ldmkit.data.scenes import GRID, Item, Scene

NEAR = 0.08
"""Centres of one object are at most this part of the canvas apart."""


@dataclass(frozen=True)
class Fidelity:
    """Means over images.

    Args:
        exact: the rate of scenes read back whole: every object, its place to 1/64, and the background.
        caption: the rate of images whose canonical caption is the one asked for.
        object_f1: of objects with shape, colour and size right and the centre within 0.08.
        binding_error: the rate of images that show the right shapes and the right colours in the wrong pairs.
        layout_iou: of boxes of the right class; a missing one counts 0.
        mean_iou: of the label maps, over the classes that either has.
        residual: distance from any scene at all, in bytes.
    """

    exact: float
    caption: float
    object_f1: float
    binding_error: float
    layout_iou: float
    mean_iou: float
    residual: float


def measure(scenes: Sequence[Scene], images: Tensor) -> Fidelity:
    """Read images and compare them with the scenes that were asked for.

    Args:
        scenes: B of them.
        images: (B, 3, side, side), uint8 or in [0, 1].

    Raises:
        ValueError: no scene, another number of images, or an image that cannot be read.
    """
    if not scenes or len(scenes) != len(images):
        raise ValueError(f"fidelity compares one image with one scene, got {len(images)} and {len(scenes)}")
    read = [read_scene(image) for image in images]
    side = images.shape[-1]
    pairs = [(truth, one.scene) for truth, one in zip(scenes, read, strict=True)]
    return Fidelity(
        exact=_mean([truth == got for truth, got in pairs]),
        caption=_mean([caption(truth) == caption(got) for truth, got in pairs]),
        object_f1=_mean([object_f1(truth, got) for truth, got in pairs]),
        binding_error=_mean([misbound(truth, got) for truth, got in pairs]),
        layout_iou=_mean([layout_iou(truth, got) for truth, got in pairs]),
        mean_iou=_mean([mean_iou(label_map(truth, side), label_map(got, side)) for truth, got in pairs]),
        residual=_mean([one.residual for one in read]),
    )


def object_f1(truth: Scene, got: Scene) -> float:
    """F1 of the objects with every attribute right and the centre within 0.08; 1 for two empty scenes."""
    count = len(truth.items) + len(got.items)
    pairs = [
        (_distance(a, b), i, j) for i, a in enumerate(truth.items) for j, b in enumerate(got.items) if _alike(a, b)
    ]
    right = _assigned([pair for pair in pairs if pair[0] <= NEAR * GRID])
    return 2 * len(right) / count if count else 1.0


def misbound(truth: Scene, got: Scene) -> bool:
    """Whether the shapes are right and the colours are right, and their pairs are not."""

    def words(scene: Scene) -> tuple[Counter[str], Counter[str], Counter[int]]:
        items = scene.items
        return Counter(i.shape for i in items), Counter(i.colour for i in items), Counter(i.label for i in items)

    (shapes, colours, pairs), (shown, painted, bound) = words(truth), words(got)
    return shapes == shown and colours == painted and pairs != bound


def layout_iou(truth: Scene, got: Scene) -> float:
    """Mean over the boxes asked for of the overlap with a box of the same class, each used once; 1 without boxes."""
    pairs = [
        (-iou, i, j)
        for i, a in enumerate(truth.items)
        for j, b in enumerate(got.items)
        if a.label == b.label and (iou := box_iou(a, b)) > 0
    ]
    return sum(-score for score, _, _ in _assigned(pairs)) / len(truth.items) if truth.items else 1.0


def box_iou(one: Item, other: Item) -> float:
    """Intersection over union of two objects' boxes."""
    a, b = one.corners, other.corners
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) ** 2 + (b[2] - b[0]) ** 2 - shared)


def mean_iou(truth: Tensor, got: Tensor) -> float:
    """Mean intersection over union of two label maps (H, W), over the classes that either has, background included.

    Raises:
        ValueError: maps of two sizes.
    """
    if truth.shape != got.shape:
        raise ValueError(f"label maps of one size are compared, got {tuple(truth.shape)} and {tuple(got.shape)}")
    classes = sorted({*truth.flatten().tolist(), *got.flatten().tolist()})
    ious = [((truth == k) & (got == k)).sum() / ((truth == k) | (got == k)).sum() for k in classes]
    return float(torch.stack(ious).mean())


def low_res_error(image: Tensor, low_res: Tensor) -> Tensor:
    """Mean absolute difference between an image, reduced by whole blocks, and the small one that it was made from.

    Args:
        image: (B, C, H, W) in [0, 1].
        low_res: (B, C, h, w) in [0, 1], H = f h and W = f w; of bytes, so the truth itself is up to 1 / 510 away.

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: sizes that are not a whole factor apart.
    """
    (H, W), (h, w) = image.shape[2:], low_res.shape[2:]
    if image.shape[:2] != low_res.shape[:2] or H % h or W % w or H // h != W // w:
        raise ValueError(
            f"an image must be a whole number of times as large as the small one, got {tuple(image.shape)} and "
            f"{tuple(low_res.shape)}"
        )
    return (functional.avg_pool2d(image.double(), H // h) - low_res.double()).abs().mean((1, 2, 3))


def known_region_error(image: Tensor, made: Tensor, mask: Tensor) -> Tensor:
    """The largest absolute difference where nothing was to change: 0 for a result that keeps what is known.

    Args:
        image: (B, C, H, W) in [0, 1].
        made: the result, of the same shape.
        mask: (B, 1, H, W), 1 = regenerate.

    Returns:
        (B,) in [0, 1]; 0 where the mask covers everything.

    Raises:
        ValueError: sizes that differ.
    """
    if image.shape != made.shape or mask.shape != (len(image), 1, *image.shape[2:]):
        raise ValueError(
            f"image and result must have one shape and the mask (B, 1, H, W) theirs, got {tuple(image.shape)}, "
            f"{tuple(made.shape)} and {tuple(mask.shape)}"
        )
    return ((image - made).abs() * (mask < 0.5)).amax((1, 2, 3))


def _alike(one: Item, other: Item) -> bool:
    return (one.shape, one.colour, one.size) == (other.shape, other.colour, other.size)


def _distance(one: Item, other: Item) -> float:
    return float(((one.x - other.x) ** 2 + (one.y - other.y) ** 2) ** 0.5)


def _assigned(pairs: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """The pairs (cost, i, j) taken cheapest first, each i and j once.

    Objects of a drawn scene are too far apart for two of them to want the same partner, so this is the best assignment.
    """
    taken: list[tuple[float, int, int]] = []
    for pair in sorted(pairs):
        if all(pair[1] != i and pair[2] != j for _, i, j in taken):
            taken.append(pair)
    return taken


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
