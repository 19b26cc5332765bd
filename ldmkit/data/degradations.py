"""Small images of large ones, to train super-resolution with.

    (image (C, H, W) in [0, 1], seed) -> (C, H / f, W / f) in [0, 1]

``Bicubic`` is the clean one of SR3; ``BSR`` and :func:`bsr_light` spoil the image in a random order: two blurs, two
steps of shrinking, noise and JPEG. Images of any shape keep it, where the original crops them to a square. Sides that
the factor does not divide are refused, because the large and the small image would no longer show the same: crop with
:func:`whole`.

Source: Zhang et al., Designing a Practical Degradation Model for Deep Blind Image Super-Resolution, arXiv 2103.14006,
section 3; the light variant and the numbers are those that arXiv 2112.10752, appendix D.6, trains with.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmkit.data.draws import Draws
from ldmkit.data.kernels import blurred, gaussian, tilted_gaussian
from ldmkit.data.resampling import area, cubic, linear, smooth_cubic

RESAMPLERS = (linear, cubic, area)
STEPS = ("blur", "blur again", "shrink", "shrink to size", "noise", "jpeg")


class Degradation(Protocol):
    """Makes a small image of a large one."""

    @property
    def factor(self) -> int:
        """f: how many times smaller the result is."""

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """(C, H / f, W / f) of an image (C, H, W), both in [0, 1]; a function of its arguments alone."""


@dataclass(frozen=True)
class Bicubic:
    """Antialiased bicubic reduction; the seed changes nothing.

    Args:
        factor: f, at least 2.

    Raises:
        ValueError: a smaller factor; when called, an image whose sides it does not divide.

    Source: Saharia et al., SR3, arXiv 2104.07636, section 4.
    """

    factor: int = 4

    def __post_init__(self) -> None:
        _check_factor("Bicubic", self.factor)

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """(C, H / f, W / f) of an image (C, H, W) in [0, 1]."""
        return smooth_cubic(image, _small("Bicubic", image, self.factor)).clamp(0, 1)


@dataclass(frozen=True)
class Box:
    """The mean of each block of f x f pixels; the seed changes nothing.

    Args:
        factor: f, at least 2.

    Raises:
        ValueError: a smaller factor; when called, an image whose sides it does not divide.
    """

    factor: int = 4

    def __post_init__(self) -> None:
        _check_factor("Box", self.factor)

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """(C, H / f, W / f) of an image (C, H, W) in [0, 1]."""
        return area(image, _small("Box", image, self.factor)).clamp(0, 1)


@dataclass(frozen=True)
class Strength:
    """The numbers in which the two published degradations differ.

    Args:
        steps: which are made, in a random order.
        blur: what the widths of the kernels are multiplied with.
        tilted_sides: the sides of a tilted kernel.
        round_sides: the sides of a round kernel.
        resize: the chance that the first shrinking resizes, and does not blur and pick.
        noise: the least and the largest standard deviation, in bytes.
        quality: of JPEG, least and largest.

    Raises:
        ValueError: an unknown step, or one of the two that shrink left out.
    """

    steps: tuple[str, ...]
    blur: float
    tilted_sides: tuple[int, ...]
    round_sides: tuple[int, ...]
    resize: float
    noise: tuple[int, int]
    quality: tuple[int, int]

    def __post_init__(self) -> None:
        if not {"shrink", "shrink to size"} <= set(self.steps) <= set(STEPS):
            raise ValueError(f"steps of Strength are {STEPS}, with both that shrink, got {self.steps}")


ODD = tuple(range(7, 26, 2))
FULL = Strength(STEPS, 1.0, ODD, ODD, 0.75, (2, 25), (30, 95))
LIGHT = Strength(
    tuple(step for step in STEPS if step != "blur again"),
    blur=0.25,
    tilted_sides=tuple(range(5, 15)),
    round_sides=(5, 6, 7),
    resize=0.8,
    noise=(1, 2),
    quality=(80, 95),
)
HALVED = 0.25
JPEG = 0.9


@dataclass(frozen=True)
class BSR:
    """The published random degradation: blurs, shrinking, noise and JPEG.

    Args:
        factor: f, at least 2.
        strength: ``FULL``, the published one, or ``LIGHT``, or other numbers.

    Raises:
        ValueError: a smaller factor; when called, an image whose sides it does not divide, or that is not of 1 or 3
            channels in [0, 1].
    """

    factor: int = 4
    strength: Strength = FULL

    def __post_init__(self) -> None:
        _check_factor("BSR", self.factor)

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """(C, H / f, W / f) of an image (C, H, W) in [0, 1]; multiples of 1 / 255, out of JPEG."""
        small = _small("BSR", image, self.factor)
        _check_values("BSR", image)
        draws, x = Draws(seed, "bsr"), image.detach().cpu().double()
        left, x = _halved(x, draws) if self.factor == 4 and draws.chance(HALVED) else (self.factor, x)
        for step in _order(self.strength.steps, draws):
            match step:
                case "shrink":
                    x = _shrink(x, left, draws, self.strength)
                case "shrink to size":
                    x = draws.choice(RESAMPLERS)(x, small).clamp(0, 1)
                case "noise":
                    x = _with_noise(x, draws, self.strength.noise)
                case "jpeg":
                    x = jpeg(x, draws.between(*self.strength.quality)) if draws.chance(JPEG) else x
                case _:
                    x = _blur(x, left, draws, self.strength)
        return jpeg(x.clamp(0, 1), draws.between(*self.strength.quality)).to(image)


def bsr_light(factor: int = 4) -> BSR:
    """The milder one: narrower blur, once, hardly any noise and better JPEG.

    As published it moves the picture by 0.8 pixels of the large one to the upper left on average, because its kernels
    may have even sides: ``replace(LIGHT, tilted_sides=(5, 7, 9, 11, 13), round_sides=(5, 7))`` does not.
    """
    return BSR(factor, LIGHT)


def whole(image: Tensor, factor: int) -> Tensor:
    """An image (C, H, W) without the last rows and columns that a factor does not divide.

    Raises:
        ValueError: nothing is left.
    """
    H, W = (side - side % factor for side in image.shape[1:])
    if not H or not W:
        raise ValueError(f"an image of {image.shape[1]} x {image.shape[2]} is smaller than the factor {factor}")
    return image[:, :H, :W]


def jpeg(image: Tensor, quality: int) -> Tensor:
    """An image (C, H, W) in [0, 1], C = 1 or 3, through JPEG; the values of the result are multiples of 1 / 255."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as read:
        decoded = np.array(read)
    return torch.from_numpy(decoded.reshape(pixels.shape)).permute(2, 0, 1).to(image.dtype) / 255


def _halved(x: Tensor, draws: Draws) -> tuple[int, Tensor]:
    """(what is left of the factor 4, an image of half the size)."""
    resample = draws.choice(RESAMPLERS) if draws.chance(0.5) else smooth_cubic
    return 2, resample(x, (x.shape[1] // 2, x.shape[2] // 2)).clamp(0, 1)


def _order(steps: tuple[str, ...], draws: Draws) -> list[str]:
    """The steps in a random order, but that an image is shrunk before it is shrunk to its size."""
    order = [steps[place] for place in draws.order(len(steps))]
    first, last = order.index("shrink"), order.index("shrink to size")
    if first > last:
        order[first], order[last] = order[last], order[first]
    return order


def _blur(x: Tensor, factor: int, draws: Draws, strength: Strength) -> Tensor:
    """A tilted Gaussian of variances up to 4 + f, or a round one of a width up to 2 + f / 5."""
    if draws.chance(0.5):
        variance = strength.blur * (4 + factor)
        variances = variance * draws.uniform(), variance * draws.uniform()
        kernel = tilted_gaussian(draws.choice(strength.tilted_sides), variances, np.pi * draws.uniform())
    else:
        sigma = strength.blur * (2 + 0.2 * factor) * draws.uniform()
        kernel = gaussian(draws.choice(strength.round_sides), sigma)
    return blurred(x, kernel)


def _shrink(x: Tensor, factor: int, draws: Draws, strength: Strength) -> Tensor:
    """Resize by 1 / (1 ... 2 f), or blur and take every f-th pixel."""
    H, W = x.shape[1:]
    if draws.chance(strength.resize):
        by = draws.uniform(1, 2 * factor)
        return draws.choice(RESAMPLERS)(x, (max(int(H / by), 1), max(int(W / by), 1))).clamp(0, 1)
    # The kernel looks at the middle of the block whose first pixel is taken, so that nothing moves.
    kernel = gaussian(25, draws.uniform(0.1, 0.6 * factor), shift=(factor - 1) / 2)
    return blurred(x, kernel)[:, ::factor, ::factor]


def _with_noise(x: Tensor, draws: Draws, levels: tuple[int, int]) -> Tensor:
    """Gaussian noise: in colour, in grey, or with channels that depend on each other."""
    level, kind, (C, H, W) = draws.between(*levels) / 255, draws.uniform(), x.shape
    if kind > 0.6:
        noise = level * draws.normal((C, H, W))
    elif kind < 0.4:
        noise = level * draws.normal((1, H, W))
    else:
        noise = np.tensordot(_mixing(C, levels[1] / 255, draws), draws.normal((C, H, W)), 1)
    return (x + torch.from_numpy(noise)).clamp(0, 1)


def _mixing(C: int, level: float, draws: Draws) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """A matrix A so that A z has the covariance |level^2 U^T D U|, of a random rotation U and diagonal D."""
    D = np.diag([draws.uniform() for _ in range(C)])
    U = np.linalg.svd(np.array([[draws.uniform() for _ in range(C)] for _ in range(C)]))[0]
    # Absolute values may leave a matrix that is no covariance: the absolute eigenvalues make it one.
    values, vectors = np.linalg.eigh(np.abs(level**2 * U.T @ D @ U))
    return np.asarray(vectors * np.sqrt(np.abs(values)))


def _small(name: str, image: Tensor, factor: int) -> tuple[int, int]:
    if image.ndim != 3 or not image.is_floating_point():
        raise ValueError(
            f"degradation '{name}' takes one image (C, H, W) in [0, 1], got shape {tuple(image.shape)} of {image.dtype}"
        )
    H, W = image.shape[1:]
    if not H or not W or H % factor or W % factor:
        raise ValueError(
            f"degradation '{name}' makes images {factor} times smaller, and {factor} does not divide {H} x {W}: crop "
            f"it with ldmkit.data.degradations.whole(image, {factor})"
        )
    return H // factor, W // factor


def _check_values(name: str, image: Tensor) -> None:
    low, high = float(image.min()), float(image.max())
    if image.shape[0] not in (1, 3) or not (low >= 0 and high <= 1):
        raise ValueError(
            f"degradation '{name}' takes an image of 1 or 3 channels in [0, 1], got {image.shape[0]} channels in "
            f"[{low:.4g}, {high:.4g}]"
        )


def _check_factor(name: str, factor: int) -> None:
    if factor < 2:
        raise ValueError(f"degradation '{name}' makes images smaller by a factor from 2 on, got {factor}")
