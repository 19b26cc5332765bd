"""Real handwritten digits: 1,797 images of 8 x 8 from scikit-learn, enlarged to 32 x 32.

The split is fixed: every fifth image of each class, in the order of the data set, is held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ldmkit.demo import CLASSES, SIZE
from ldmkit.noise import Noise

WRITERS = "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0)"


@dataclass(frozen=True)
class Digits:
    """One part of the split.

    Args:
        image: (N, 1, 32, 32) in [-1, 1].
        label: (N,) int64.
    """

    image: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.label)


@cache
def load_digits() -> tuple[Digits, Digits]:
    """(training part, held-out part): 1,442 and 355 images.

    Raises:
        ImportError: scikit-learn, which ships the images, is not installed.
    """
    from sklearn.datasets import load_digits as source

    raw = source()
    label = torch.from_numpy(raw.target.astype(np.int64))
    image = torch.from_numpy(raw.images.astype(np.float32))[:, None] / 8 - 1
    image = functional.interpolate(image, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)
    held_out = torch.zeros(len(label), dtype=torch.bool)
    for digit in range(CLASSES):
        held_out[(label == digit).nonzero().flatten()[4::5]] = True
    return Digits(image[~held_out], label[~held_out]), Digits(image[held_out], label[held_out])


def jittered(image: Tensor, noise: Noise) -> Tensor:
    """Each image turned, scaled, sheared and moved a little, by its own seed: so that few images are not memorised.

    Args:
        image: (B, 1, H, W) in [-1, 1].
        noise: one seed per image.
    """
    turn, grow, lean, right, down = ((2 * noise.on(name).uniform() - 1) for name in ("turn", "grow", "lean", "x", "y"))
    angle, scale, shear = turn * 0.17, 1 + 0.08 * grow, 0.12 * lean
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cos, shear - sin, 0.06 * right], 1), torch.stack([sin, cos, 0.06 * down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
    return functional.grid_sample(image + 1, grid, mode="bilinear", align_corners=False) - 1


def batch_of(part: Digits, seed: int, step: int, size: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """(images, labels, one seed per sample) of a step: a function of (seed, step), so a run can stop anywhere.

    Samples follow each other through one permutation of the data per epoch.
    """
    first = step * size
    places = range(first, first + size)
    order = {epoch: _permutation(len(part), seed, epoch) for epoch in {place // len(part) for place in places}}
    index = torch.tensor([order[place // len(part)][place % len(part)] for place in places])
    return part.image[index], part.label[index], tuple(seed * 2**32 + place for place in places)


def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size).tolist()
    return order
