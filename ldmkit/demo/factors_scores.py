"""What the comparison of downsampling factors is measured by: single objects, read back from pixels.

Three numbers of a set of images, none of them from a network:

- ``as_asked``: the share that reads as one object of the class asked for, see :mod:`ldmkit.data.oracle`. The reader
  takes the nearest of four shapes, so that a blob of the right colour can be right by chance;
- ``residual``: the mean distance from any scene at all, in bytes: noise, blur and torn shapes;
- ``fd_cells``: a Fréchet distance between Gaussians fitted to 64 numbers of each image, the mean colour and the root
  mean square gradient of 4 x 4 cells, in units of their deviations over the reference. It is no FID, grows with fewer
  images, and is to be read beside the same number of real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as counted
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from ldmkit.data.oracle import read_scene
from ldmkit.data.raster import render
from ldmkit.data.scenes import CLASSES, HELD_OUT, Scene, Split, draw_scene

SIDE = 32
CELLS = 4
SHOWN = tuple(k for k, name in enumerate(CLASSES) if tuple(name.split()[::-1]) not in HELD_OUT)
"""The 28 classes out of 32 that the training scenes show."""


@dataclass(frozen=True)
class Objects:
    """Scenes of one object each.

    Args:
        scenes: N of them.
        image: (N, 3, 32, 32) in [0, 1].
    """

    scenes: tuple[Scene, ...]
    image: Tensor

    @property
    def label(self) -> list[int]:
        """The class of each, out of ``ldmkit.data.scenes.CLASSES``."""
        return [scene.items[0].label for scene in self.scenes]


def objects(count: int, split: Split, seed: int) -> Objects:
    """The first scenes of a split that show one object."""
    drawn = (draw_scene(seed, i, split) for i in counted())
    scenes = tuple(islice((scene for scene in drawn if len(scene.items) == 1), count))
    return Objects(scenes, torch.stack([render(scene, SIDE) for scene in scenes]).float() / 255)


def scores(images: Tensor, label: Sequence[int], reference: Tensor) -> dict[str, float]:
    """The three numbers, rounded to four digits.

    Args:
        images: (B, 3, 32, 32) in [0, 1].
        label: B classes that were asked for.
        reference: (N, 3, 32, 32) in [0, 1], real ones.

    Raises:
        ValueError: another number of labels than images.
    """
    read = [read_scene(image) for image in images]
    right = [[item.label for item in one.scene.items] == [asked] for one, asked in zip(read, label, strict=True)]
    found = {
        "as_asked": sum(right) / len(right),
        "residual": sum(one.residual for one in read) / len(read),
        "fd_cells": fd_cells(images, reference),
    }
    return {name: round(value, 4) for name, value in found.items()}


def exact(images: Tensor, scenes: Sequence[Scene]) -> float:
    """The share of images that read as exactly the scene they were made from."""
    right = [read_scene(image).scene == scene for image, scene in zip(images, scenes, strict=True)]
    return round(sum(right) / len(right), 4)


def fd_cells(images: Tensor, reference: Tensor) -> float:
    """The Fréchet distance of two sets of images on :func:`cells`, in deviations of the reference, squared."""
    real = cells(reference)
    unit = real.std(dim=0).clamp_min(1e-3)  # a number that never changes would be divided by 0
    return frechet(cells(images) / unit, real / unit)


def cells(images: Tensor) -> Tensor:
    """Colour and sharpness by place: (B, 3, H, W) in [0, 1] -> (B, 64), float64."""
    x = images.double()
    square = functional.pad(x.diff(dim=2), (0, 0, 0, 1)).square() + functional.pad(x.diff(dim=3), (0, 1)).square()
    colour = functional.adaptive_avg_pool2d(x, CELLS)
    sharp = functional.adaptive_avg_pool2d(square.mean(dim=1, keepdim=True), CELLS).sqrt()
    return torch.cat([colour.flatten(1), sharp.flatten(1)], dim=1)


def frechet(one: Tensor, other: Tensor) -> float:
    r"""The squared distance :math:`|m_1 - m_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})` of fitted Gaussians.

    Args:
        one: (N, D), float64, N at least 2.
        other: (M, D), likewise.

    Source: Dowson and Landau 1982, eq. 4.
    """
    (m1, c1), (m2, c2) = ((rows.mean(dim=0), rows.T.cov()) for rows in (one, other))
    values, vectors = torch.linalg.eigh(c1)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp_min(0).sqrt().sum()
    return float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross)
