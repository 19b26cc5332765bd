r"""Guiders: how likely an observation is, given an image.

A :data:`Guider` is any ``(image, level) -> log p(y | image)``, up to a constant. It may use the level: the estimate is
uncertain where there is noise, and an exact likelihood knows it. Ready-made ones compare the image with a target y,

.. math:: \log p(y \mid x) = -\tfrac12 \lVert y - T(x) \rVert^2
          \qquad\text{or}\qquad \log p(y \mid x) = -d(x, y)

with T a downsampling or d a perceptual distance; the scale of the guidance is one over the variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional as F

from ldmkit.guidance.contract import check_images
from ldmkit.process import Level

Guider = Callable[[Tensor, Level[float]], Tensor]
"""``(image, level) -> log p(y | image)``: (B, C, H, W) to (B,), differentiable in the image."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""``(image, other) -> d``: two batches (B, C, H, W) in [-1, 1] to (B,), differentiable in the first."""


@dataclass(frozen=True, eq=False)
class Downsampled:
    """A Gaussian of unit variance around the target, after antialiased bicubic downsampling to the target's size.

    Args:
        target: (B, C, h, w), or (1, C, h, w) for all, in the range of the images, [-1, 1] of a decoder; on the model's
            device.

    Raises:
        ValueError: a target of another rank; in a call, one that is larger than the images, or has another number of
            channels or of images.

    Source: Rombach et al. 2022 (arXiv 2112.10752), appendix C.
    """

    target: Tensor

    def __post_init__(self) -> None:
        _check_target("Downsampled", self.target)

    def take(self, images: Sequence[int]) -> Downsampled:
        """With the targets of these images."""
        return replace(self, target=_of_images(self.target, images))

    def __call__(self, image: Tensor, level: Level[float]) -> Tensor:
        """``-||y - T(image)||**2 / 2``, (B,)."""
        size = self.target.shape[2:]
        _check_fit("Downsampled", self.target, image)
        if size[0] > image.shape[2] or size[1] > image.shape[3]:
            raise ValueError(
                f"guider Downsampled has a target of {tuple(size)} for images of {tuple(image.shape[2:])}: it should "
                "be at most as large"
            )
        small = image if size == image.shape[2:] else F.interpolate(image, size, mode="bicubic", antialias=True)
        return -0.5 * (self.target.to(image) - small).square().flatten(1).sum(dim=1)


@dataclass(frozen=True, eq=False)
class Perceptual:
    """How near an image is to the target by a distance of your choice, such as a perceptual one.

    Args:
        distance: ``(image, other) -> d``, (B,); a frozen module or any function.
        target: (B, C, H, W), or (1, C, H, W) for all, in [-1, 1]; on the model's device.

    Raises:
        ValueError: a target of another rank; in a call, one of another size or number of images.

    Source: Rombach et al. 2022 (arXiv 2112.10752), appendix C.
    """

    distance: Distance
    target: Tensor

    def __post_init__(self) -> None:
        _check_target("Perceptual", self.target)

    def take(self, images: Sequence[int]) -> Perceptual:
        """With the targets of these images."""
        return replace(self, target=_of_images(self.target, images))

    def __call__(self, image: Tensor, level: Level[float]) -> Tensor:
        """``-d(image, y)``, (B,)."""
        _check_fit("Perceptual", self.target, image)
        if self.target.shape[2:] != image.shape[2:]:
            raise ValueError(
                f"guider Perceptual has a target of {tuple(self.target.shape[2:])} for images of "
                f"{tuple(image.shape[2:])}: resize the target, or give a distance that resizes"
            )
        return -self.distance(image, self.target.to(image).expand_as(image))


def _check_target(name: str, target: Tensor) -> None:
    if target.ndim != 4 or not target.is_floating_point():
        raise ValueError(
            f"guider {name} needs a target of shape (B, C, h, w) in [-1, 1], got {target.dtype} {tuple(target.shape)}"
        )


def _check_fit(name: str, target: Tensor, image: Tensor) -> None:
    if target.shape[0] not in (1, image.shape[0]) or target.shape[1] != image.shape[1]:
        raise ValueError(
            f"guider {name} has targets of shape {tuple(target.shape)} for images of shape {tuple(image.shape)}: it "
            "should be one for all or one each, with as many channels"
        )


def _of_images(target: Tensor, images: Sequence[int]) -> Tensor:
    if target.shape[0] == 1:
        return target
    check_images(target.shape[0], images)
    return target[list(images)]
