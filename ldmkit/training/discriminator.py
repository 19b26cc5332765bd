r"""The discriminator of a first stage: a small network that says for every patch of an image how real it looks.

.. math::

    L_D = \tfrac12 \big( \ell(D(x), \text{real}) + \ell(D(\hat x), \text{made}) \big), \qquad
    L_G = -\operatorname{mean} D(\hat x)

The weight of :math:`L_G` in the autoencoder's loss is found anew in every step, so that neither term drowns the other:
see :func:`balance`. When it starts and how much it counts says :class:`Adversary`.

Source: Isola et al. 2017 (arXiv 1611.07004), section 3.2.2; Esser et al. 2021 (arXiv 2012.09841), section 3.1, eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

Judging = Callable[[Tensor, Tensor], Tensor]
"""``(real, made) -> (B,)``: the discriminator's loss from its logits (B, 1, h, w) of images and reconstructions."""

CEILING = 1e4
FLOOR = 1e-4


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """(max(0, 1 - D(x)) + max(0, 1 + D(x_made))) / 2, (B,): logits beyond 1 on the right side cost nothing."""
    return 0.5 * (F.relu(1 - real) + F.relu(1 + made)).mean(dim=(1, 2, 3))


def vanilla(real: Tensor, made: Tensor) -> Tensor:
    """(softplus(-D(x)) + softplus(D(x_made))) / 2, (B,): the cross-entropy of Goodfellow et al. 2014."""
    return 0.5 * (F.softplus(-real) + F.softplus(made)).mean(dim=(1, 2, 3))


def deceiving(made: Tensor) -> Tensor:
    """-D(x_made), (B,): what the autoencoder pays, whichever loss the discriminator has."""
    return -made.mean(dim=(1, 2, 3))


@runtime_checkable
class Checking(Protocol):
    """A discriminator that can say what it will refuse, long before it is asked to judge."""

    def check(self, image: Tensor) -> None:
        """Refuse images (B, C, H, W) that it cannot judge.

        Raises:
            ValueError: for what reason, and what to do.
        """


@dataclass(frozen=True, eq=False)
class Adversary:
    """A discriminator and the part it plays.

    Args:
        discriminator: images (B, C, H, W) in [-1, 1] -> logits (B, 1, h, w), positive for real.
        weight: of the adversarial term, multiplied with the :func:`balance`.
        start: the first step in which it takes part; before, it is neither run nor trained.
        loss: :func:`hinge` or :func:`vanilla`, of the discriminator.

    Raises:
        ValueError: a negative weight or start.
    """

    discriminator: nn.Module
    weight: float = 0.5
    start: int = 50_001
    loss: Judging = hinge

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"the weight of an adversary is at least 0, got {self.weight}")
        if self.start < 0:
            raise ValueError(f"an adversary starts at a step, 0 or later, got start={self.start}")


def balance(fit: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """|d fit / d W| / (|d adversarial / d W| + 1e-4), at most 1e4: a constant for the backward pass.

    Args:
        fit: 0-d, how badly the reconstruction fits.
        adversarial: 0-d, see :func:`deceiving`.
        last: W, the weight of the decoder's last layer.

    Returns:
        0-d, the same in every process: the gradients are those of the whole batch.

    Source: Esser et al. 2021, eq. 7; the ceiling: the original's code.
    """
    size, against = (
        _averaged(torch.autograd.grad(loss, last, retain_graph=True)[0]).norm() for loss in (fit, adversarial)
    )
    ratio: Tensor = size / (against + FLOOR)
    return ratio.clamp(0, CEILING).detach()


def _averaged(gradient: Tensor) -> Tensor:
    """The gradient of the mean over all processes, whose shares of a batch are equal."""
    gradient = gradient.float()
    if distributed.is_initialized():
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()
    return gradient


class PatchGAN(nn.Module):
    """Convolutions of 4 x 4, each logit of which sees one patch; parameters have the names of the published files.

    Args:
        image_channels: channels of the images.
        base_channels: of the first convolution; they double with every layer up to 8 times as many.
        layers: how often the sides are halved: 3 judges patches of 70 x 70 pixels, 2 of 34 x 34.
        norm: channels -> the norm between convolution and nonlinearity. The published ones have :class:`BatchNorm`.

    Raises:
        ValueError: no layers or channels.

    Source: Isola et al. 2017, section 6.1.1 and 6.1.2.
    """

    def __init__(
        self,
        image_channels: int = 3,
        base_channels: int = 64,
        layers: int = 3,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if min(image_channels, base_channels, layers) < 1:
            raise ValueError(
                "a PatchGAN needs positive image_channels, base_channels and layers, got "
                f"{image_channels}, {base_channels} and {layers}"
            )
        self.image_channels = image_channels
        self.smallest = 3 * 2**layers
        norm = BatchNorm if norm is None else norm
        widths = [base_channels * min(2**layer, 8) for layer in range(layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(image_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            body += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=False),
                norm(widths[layer]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> logits (B, 1, h, w).

        Raises:
            ValueError: as :meth:`check`.
        """
        self.check(image)
        logits: Tensor = self.main(image)
        return logits

    def check(self, image: Tensor) -> None:
        """Refuse images that it cannot judge.

        Raises:
            ValueError: other channels, or images too small for one patch.
        """
        if image.ndim != 4 or image.shape[1] != self.image_channels or min(image.shape[2:]) < self.smallest:
            raise ValueError(
                f"this PatchGAN judges images (B, {self.image_channels}, H, W) of at least {self.smallest} pixels a "
                f"side, got {tuple(image.shape)}: build it with the images' channels, or with fewer layers"
            )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, BatchNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)


class BatchNorm(nn.Module):
    """Normalises channels by the mean and variance of the batch at hand, over all processes and in every mode.

    Nothing is kept between batches: a discriminator is only ever asked while it trains. Two processes with half a batch
    each compute what one computes with the whole.

    Args:
        channels: of the input.
        eps: added to the variance.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w), in float32 inside."""
        centred = x.float() - _mean(x.float())
        scale = self.weight[:, None, None] * (_mean(centred.square()) + self.eps).rsqrt()
        return torch.addcmul(self.bias[:, None, None], centred, scale).to(x.dtype)


def _mean(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (1, C, 1, 1), over all processes."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    if not distributed.is_initialized():
        return mean
    total: Tensor = _Summed.apply(mean)
    return total / distributed.get_world_size()


class _Summed(torch.autograd.Function):
    """The sum over all processes; every process's gradient depends on every process's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - torch's own type
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401 - torch's own type
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total
