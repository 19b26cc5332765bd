"""Conditioning by channels: maps of the latent's size that are joined to the state.

    semantic map    c = W downsample(one_hot(s))                 soft labels, then a learned 1 x 1 projection
    low resolution  c = y                                        raw pixels; an f = 4 first stage makes 4x upscaling
    masked image    c = [encode(hidden image), nearest(m)]       mask 1 = regenerate

The joined channels keep their own range at every noise level: they are never rescaled with the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmkit.conditioners.inputs import class_names, indices, real
from ldmkit.conditioning import Batch, Conditioning


class SemanticMap(nn.Module):
    """Brings a map of class labels to the latent's size, softening edges, and projects it to a few channels.

    Args:
        classes: K, the number of labels.
        channels: C, the channels given to the backbone.
        stages: how often the map is halved; ``factor = 2**stages`` must be the first stage's.
        names: the classes' names, one each; they travel with the model.

    Reads ``segmentation``: (B, H, W) integers in [0, K - 1], or (B, K, H, W) floating point, one-hot or soft. H and W
    must be multiples of ``2**stages``.

    Raises:
        ValueError: sizes out of range, or another number of names than classes; in a call, a map of another shape or
            with labels out of range.

    Source: ``SpatialRescaler`` of the original, without bias (182 labels to 3 channels in the published models).
    """

    reads: tuple[str, ...] = ("segmentation",)

    def __init__(self, classes: int, channels: int, stages: int, names: Sequence[str] | None = None) -> None:
        super().__init__()
        if classes < 1 or channels < 1 or stages < 0:
            raise ValueError(
                "conditioner 'semantic-map' needs at least 1 class, 1 channel and 0 stages, "
                f"got {classes}, {channels} and {stages}"
            )
        self.classes = classes
        self.channels = channels
        self.stages = stages
        self.names = class_names(names, classes, "semantic-map")
        self.factor = 2**stages
        self.provides: Mapping[str, int] = {"concat": channels}
        self.channel_mapper = nn.Conv2d(classes, channels, 1, bias=False)

    def forward(self, batch: Batch) -> Conditioning:
        """Concat of shape (B, C, H / 2**stages, W / 2**stages)."""
        x = self._segmentation(batch)
        x = x if x.is_floating_point() else self._one_hot(x)
        for _ in range(self.stages):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        return Conditioning(concat=self.channel_mapper(x.to(self.channel_mapper.weight.dtype)))

    def null(self, batch: Batch) -> Conditioning:
        """Zeros of the same shape; the published models were never trained with it."""
        x = self._segmentation(batch)
        h, w = (size // self.factor for size in x.shape[-2:])
        return Conditioning(concat=self.channel_mapper.weight.new_zeros(x.shape[0], self.channels, h, w))

    def _segmentation(self, batch: Batch) -> Tensor:
        given = batch["segmentation"]
        if isinstance(given, Tensor) and given.ndim == 4:
            x = real(batch, "segmentation", ("B", self.classes, "H", "W"), "semantic-map")
        else:
            x = indices(batch, "segmentation", ("B", "H", "W"), self.classes, "semantic-map")
        if any(size % self.factor for size in x.shape[-2:]):
            raise ValueError(
                f"conditioner 'semantic-map' halves a map {self.stages} times and needs H and W in multiples of "
                f"{self.factor}, got {tuple(x.shape[-2:])}: crop or pad the map together with the image"
            )
        return x

    def _one_hot(self, labels: Tensor) -> Tensor:
        B, H, W = labels.shape
        return self.channel_mapper.weight.new_zeros(B, self.classes, H, W).scatter_(1, labels[:, None], 1.0)


class LowRes(nn.Module):
    """Passes a low-resolution image to the backbone at the size of the latent; it has no parameters.

    Args:
        channels: channels of the image.

    Reads ``low_res``: (B, channels, h, w) floating point in [-1, 1], where (h, w) is the latent's size: an image
    that is ``factor`` times smaller than the result, for a first stage with that factor.

    Raises:
        ValueError: fewer than 1 channel; in a call, another shape or integers.

    Source: arXiv 2112.10752, section 4.4; the identity conditioner of the original.
    """

    reads: tuple[str, ...] = ("low_res",)

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"conditioner 'low-res' needs at least 1 channel, got {channels}")
        self.channels = channels
        self.provides: Mapping[str, int] = {"concat": channels}

    def forward(self, batch: Batch) -> Conditioning:
        """Pass ``batch["low_res"]`` on."""
        return Conditioning(concat=real(batch, "low_res", ("B", self.channels, "h", "w"), "low-res"))

    def null(self, batch: Batch) -> Conditioning:
        """Zeros, a grey image, of the same shape; the published model was never trained with it."""
        return self.forward(batch).map(torch.zeros_like)


class MaskedImage(nn.Module):
    """Tells an inpainting backbone what is known: the latent of the image with its hole filled, and the mask.

    Two conventions exist, and a model trained with one is silently wrong with the other:

    =================  =====================  ==============  ==========
    published as       ``order``              ``mask_range``  ``hole``
    =================  =====================  ==============  ==========
    latent diffusion   ``(latent, mask)``     ``(-1, 1)``     -1 (black)
    Stable Diffusion   ``(mask, latent)``     ``(0, 1)``      0 (grey)
    =================  =====================  ==============  ==========

    Args:
        channels: C, the channels of the latent.
        order: the order in which the two are joined to the state.
        mask_range: the values given to the backbone for a kept and for a regenerated place.
        hole: the value in [-1, 1] that fills the hole in the image before it is encoded; whoever fills
            ``masked_image_latent`` uses it with :func:`masked_image`.

    Reads ``masked_image_latent``: (B, C, h, w) floating point, scaled like the state. Reads ``mask``: (B, 1, H, W)
    floating point in [0, 1], 1 = regenerate, whose size is a multiple of (h, w); it is reduced to the nearest value.

    Raises:
        ValueError: an unknown order or fewer than 1 channel; in a call, shapes that do not fit each other or a mask
            outside [0, 1].

    Source: arXiv 2112.10752, section 4.5; the inpainting scripts of the original and of Stable Diffusion.
    """

    reads: tuple[str, ...] = ("masked_image_latent", "mask")

    def __init__(
        self,
        channels: int,
        order: Sequence[str] = ("latent", "mask"),
        mask_range: tuple[float, float] = (-1.0, 1.0),
        hole: float = -1.0,
    ) -> None:
        super().__init__()
        if sorted(order) != ["latent", "mask"]:
            raise ValueError(f"conditioner 'masked-image' joins ('latent', 'mask') in some order, got {tuple(order)}")
        if channels < 1 or len(mask_range) != 2:
            raise ValueError(
                "conditioner 'masked-image' needs at least 1 latent channel and two mask values (kept, regenerated), "
                f"got {channels} and {tuple(mask_range)}"
            )
        self.channels = channels
        self.order = tuple(order)
        self.mask_range = (mask_range[0], mask_range[1])
        self.hole = hole
        self.provides: Mapping[str, int] = {"concat": channels + 1}

    def forward(self, batch: Batch) -> Conditioning:
        """Concat of shape (B, C + 1, h, w)."""
        latent, mask = self._latent_and_mask(batch)
        return self._joined(latent, F.interpolate(mask, size=latent.shape[-2:], mode="nearest"))

    def null(self, batch: Batch) -> Conditioning:
        """Everything is to be regenerated: a latent of zeros and a mask of ones.

        The published models keep this conditioning in both halves of guidance, and were never trained with this null.
        """
        latent, _ = self._latent_and_mask(batch)
        return self._joined(torch.zeros_like(latent), torch.ones_like(latent[:, :1]))

    def _latent_and_mask(self, batch: Batch) -> tuple[Tensor, Tensor]:
        latent = real(batch, "masked_image_latent", ("B", self.channels, "h", "w"), "masked-image")
        mask = real(batch, "mask", (latent.shape[0], 1, "H", "W"), "masked-image")
        if any(large % small for large, small in zip(mask.shape[-2:], latent.shape[-2:], strict=True)):
            raise ValueError(
                f"conditioner 'masked-image' needs a mask whose size is a multiple of the latent's "
                f"{tuple(latent.shape[-2:])}, got {tuple(mask.shape[-2:])}"
            )
        low, high = torch.stack(mask.aminmax()).tolist()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"conditioner 'masked-image' reads a mask in [0, 1], 1 = regenerate, got values in [{low}, {high}]: "
                "rescale it"
            )
        return latent, mask

    def _joined(self, latent: Tensor, mask: Tensor) -> Conditioning:
        low, high = self.mask_range
        parts = {"latent": latent, "mask": low + (high - low) * mask.to(latent.dtype)}
        return Conditioning(concat=torch.cat([parts[name] for name in self.order], dim=1))


def masked_image(image: Tensor, mask: Tensor, hole: float) -> Tensor:
    """Fill the hole of an image: ``(1 - mask) * image + mask * hole``.

    Args:
        image: (B, C, H, W) in [-1, 1].
        mask: (B, 1, H, W) in [0, 1], 1 = regenerate.
        hole: the value in [-1, 1] to fill it with.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    return (1 - mask) * image + mask * hole
