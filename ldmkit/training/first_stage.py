r"""The objective of a first stage, as the two phases of a training step.

.. math::

    \text{autoencoder:} \quad & \mathrm{fit}(|x - \hat x| + w_p\, d_p(x, \hat x)) + L_{reg}(z)
        + w_a\, \lambda\, L_G(\hat x) \\
    \text{discriminator:} \quad & L_D(x, \hat x)

Each term is an object: the error of a pixel (:func:`l1`, :func:`l2`), a perceptual distance
(:mod:`ldmkit.training.perceptual`), the fit that makes one number of them (:class:`MeanError`, :class:`LogVariance`),
the regulariser (:class:`KLWeight`, :class:`CodebookWeight`), and the adversary with its balance :math:`\lambda`
(:mod:`ldmkit.training.discriminator`). A published ``kl`` model has the error summed, a ``vq`` model its mean:

>>> FirstStageLoss(read_lpips("vgg16.pth"), KLWeight(1e-6), fit=LogVariance())
>>> FirstStageLoss(read_lpips("vgg16.pth"), CodebookWeight(1.0), fit=MeanError())

Source: Rombach et al. 2022, section 3.1 and appendix G, eq. 25; Esser et al. 2021, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from ldmkit.composition import FirstStage, label_of
from ldmkit.first_stages import Gaussian, Quantized, codebook_usage
from ldmkit.latents import posterior_noise
from ldmkit.training.discriminator import Adversary, Checking, balance, deceiving

Pixels = Callable[[Tensor, Tensor], Tensor]
"""``(image, reconstruction) -> error``, all (B, C, H, W)."""


def l1(image: Tensor, made: Tensor) -> Tensor:
    """|x - x_made|, as the published models were trained."""
    return (image - made).abs()


def l2(image: Tensor, made: Tensor) -> Tensor:
    """(x - x_made)^2."""
    return (image - made).square()


class MeanError(nn.Module):
    """The mean over the elements of an image, as in the published ``vq`` models."""

    def forward(self, error: Tensor) -> Tensor:
        """(B, C, H, W) -> (B,)."""
        return error.mean(dim=(1, 2, 3))


class LogVariance(nn.Module):
    r"""The negative log-likelihood with one learned log-variance s: :math:`\sum (e / \exp s + s)` over an image.

    s tends to the logarithm of the mean error, so that the error counts the more the smaller it is. Being a sum, the
    loss and its gradient grow with the image: limit no gradient by a norm that was meant for means.

    Args:
        initial: s at first.
        frozen: s stays, as it did in the published ``kl`` models: theirs was in no optimizer.

    Source: the original's ``LPIPSWithDiscriminator``.
    """

    def __init__(self, initial: float = 0.0, frozen: bool = False) -> None:
        super().__init__()
        self.initial = initial
        self.frozen = frozen
        self.value = nn.Parameter(torch.tensor([float(initial)]), requires_grad=not frozen)

    def forward(self, error: Tensor) -> Tensor:
        """(B, C, H, W) -> (B,)."""
        return (error * (-self.value).exp() + self.value).sum(dim=(1, 2, 3))


class Regulariser(Protocol):
    """The term of the latent."""

    def __call__(self, latent: Any, /) -> Tensor:  # noqa: ANN401 - what the first stage gives beside its image
        """(B,), weighted."""

    def numbers(self, latent: Any, /) -> dict[str, float]:  # noqa: ANN401
        """What a reader of the log wants to know about a latent."""


@dataclass(frozen=True)
class KLWeight:
    """weight * KL(q(z | x) || N(0, 1)) in nats, summed over the latent.

    Args:
        weight: 1e-6 in the published models, whose fit is a sum over the image too.
    """

    weight: float = 1e-6

    def __call__(self, latent: Gaussian) -> Tensor:
        """(B,)."""
        return self.weight * latent.kl()

    def numbers(self, latent: Gaussian) -> dict[str, float]:
        """The divergence in nats, and the mean deviation of the posterior."""
        return {"kl": float(latent.kl().detach().mean()), "posterior_std": float(latent.std.detach().mean())}


@dataclass(frozen=True)
class CodebookWeight:
    """weight * the codebook's own loss, in which the first stage's ``beta`` and ``beta_on`` stand.

    Args:
        weight: 1 in the published models.
    """

    weight: float = 1.0

    def __call__(self, latent: Quantized) -> Tensor:
        """(B,)."""
        return self.weight * latent.loss

    def numbers(self, latent: Quantized) -> dict[str, float]:
        """How many codes occur, and their perplexity."""
        usage = codebook_usage(latent.indices, int(latent.indices.max()) + 1)  # codes above count 0 in both
        return {
            "codebook_loss": float(latent.loss.detach().mean()),
            "used": int(usage.used),
            "perplexity": float(usage.perplexity),
        }


@dataclass(frozen=True, eq=False)
class Terms:
    """The loss of an autoencoder, term by term.

    Args:
        pixels: (B,), the mean error of a pixel; not weighted and not part of the sum.
        perceptual: (B,), the distance; the same.
        fit: (B,), what the fit made of the two.
        regulariser: (B,), weighted.
        adversarial: (B,), not weighted; 0 before the adversary starts.
        weight: 0-d, of the adversarial term.
    """

    pixels: Tensor
    perceptual: Tensor
    fit: Tensor
    regulariser: Tensor
    adversarial: Tensor
    weight: Tensor

    @property
    def total(self) -> Tensor:
        """(B,), what is minimised."""
        return self.fit + self.regulariser + self.weight * self.adversarial


class FirstStageLoss(nn.Module):
    """What a reconstruction costs without an adversary.

    Args:
        perceptual: distance of images ``(a, b) -> (B,)``; None: none, chosen so.
        regulariser: the term of the latent.
        pixels: error of every element.
        perceptual_weight: of the distance, which is added to the error of every element.
        fit: error (B, C, H, W) -> (B,); None: :class:`MeanError`.

    Raises:
        ValueError: a negative weight.
    """

    def __init__(
        self,
        perceptual: nn.Module | None,
        regulariser: Regulariser,
        pixels: Pixels = l1,
        perceptual_weight: float = 1.0,
        fit: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not perceptual_weight >= 0:
            raise ValueError(f"perceptual_weight must be at least 0, got {perceptual_weight}")
        self.perceptual = perceptual
        self.regulariser = regulariser
        self.pixels = pixels
        self.perceptual_weight = perceptual_weight
        self.fit = MeanError() if fit is None else fit

    def forward(self, image: Tensor, made: Tensor, latent: Any) -> Terms:  # noqa: ANN401 - the regulariser's
        """The terms of a batch.

        Args:
            image: (B, C, H, W) in [-1, 1].
            made: its reconstruction.
            latent: what the first stage gives beside it.
        """
        made = made.float()
        error = self.pixels(image, made)
        distance = made.new_zeros(len(made)) if self.perceptual is None else self.perceptual(image, made)
        fit = self.fit(error + self.perceptual_weight * distance[:, None, None, None])
        zero = torch.zeros_like(fit).detach()
        return Terms(error.mean(dim=(1, 2, 3)), distance, fit, self.regulariser(latent), zero, zero.new_zeros(()))


class Outside:
    """A module that another phase trains, run with its weights as constants.

    Args:
        module: no submodule of whoever reads it, or its weights would be trained there too.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Tensor) -> Any:  # noqa: ANN401 - whatever the module gives
        """What the module gives; gradients go to the inputs alone."""
        weights = {name: _constant(parameter) for name, parameter in self.module.named_parameters()}
        return functional_call(self.module, weights, inputs)


def _constant(parameter: Tensor) -> Tensor:
    """The whole weight, also where each process holds a share."""
    whole: Tensor = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach()


class Autoencoding(nn.Module):
    """The first phase: the loss of encoder and decoder, and of whatever is learned in the loss.

    Args:
        stage: ``stage(image, noise)`` gives the reconstruction and what the regulariser reads.
        loss: every term but the adversary's.
        adversary: None: none.
        last: name of the decoder's last layer in the first stage, whose weight the balance is measured at.

    Raises:
        TypeError: the first stage is none.
        ValueError: it has no such layer, or a frozen one, and there is an adversary.
    """

    def __init__(self, stage: nn.Module, loss: FirstStageLoss, adversary: Adversary | None, last: str) -> None:
        super().__init__()
        _check_stage(stage)
        if adversary is not None:
            _check_layer(stage, last)
        self.stage = stage
        self.loss = loss
        self.adversary = adversary  # a record and no module: its weights belong to the other phase
        self.last = last

    def forward(self, batch: Mapping[str, Any], seeds: Sequence[int], step: int) -> Tensor:
        """The loss per sample, (B,).

        Args:
            batch: ``image`` (B, C, H, W) in [-1, 1].
            seeds: one per sample, of the posterior's draw.
            step: steps done before.
        """
        return self.terms(batch["image"], seeds, step).total

    def terms(self, image: Tensor, seeds: Sequence[int], step: int) -> Terms:
        """The same, term by term; arguments as :meth:`forward`."""
        made, latent = self.stage(image, posterior_noise(cast(FirstStage, self.stage), image, seeds))
        terms: Terms = self.loss(image, made, latent)
        if self.adversary is None or step < self.adversary.start:
            return terms
        adversarial = deceiving(Outside(self.adversary.discriminator)(made.float()).float())
        weight = cast(Tensor, self.stage.get_submodule(self.last).weight)
        factor = self.adversary.weight * balance(terms.fit.mean(), adversarial.mean(), weight)
        return Terms(terms.pixels, terms.perceptual, terms.fit, terms.regulariser, adversarial, factor)


class Discriminating(nn.Module):
    """The second phase: the loss of the discriminator, on images and what the autoencoder now makes of them.

    Args:
        adversary: the discriminator and its part.
        stage: the autoencoder, which is only read.
    """

    def __init__(self, adversary: Adversary, stage: nn.Module) -> None:
        super().__init__()
        self.discriminator = adversary.discriminator
        self.adversary = adversary
        self.read = Outside(stage)

    def forward(self, batch: Mapping[str, Any], seeds: Sequence[int], step: int) -> Tensor:
        """The loss per sample, (B,); zeros without a gradient before the start. Arguments as the first phase's."""
        image: Tensor = batch["image"]
        if step < self.adversary.start:
            if isinstance(self.discriminator, Checking):
                self.discriminator.check(image)
            return image.new_zeros(len(image), dtype=torch.float32)
        with torch.no_grad():
            made, _ = self.read(image, posterior_noise(cast(FirstStage, self.read.module), image, seeds))
        return self.adversary.loss(self.discriminator(image).float(), self.discriminator(made.float()).float())


def _check_stage(stage: nn.Module) -> None:
    if not isinstance(stage, nn.Module) or not isinstance(stage, FirstStage):
        raise TypeError(
            f"{type(stage).__name__} is not a first stage: an nn.Module with factor, channels, image_channels, encode "
            "and decode"
        )


def _check_layer(stage: nn.Module, last: str) -> None:
    layer = dict(stage.named_modules()).get(last)
    weights = {} if layer is None else dict(layer.named_parameters(recurse=False))
    if "weight" not in weights:
        raise ValueError(
            f"first stage {label_of(stage)} has no layer '{last}' with a weight, at which the adversary is balanced: "
            "name the last layer of its decoder with last=..."
        )
    if not weights["weight"].requires_grad:
        raise ValueError(
            f"layer '{last}' of first stage {label_of(stage)} is frozen, and the adversary is balanced at its weight: "
            "let it be trained, or leave the adversary out"
        )


def finite(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """Numbers as JSON has them; words stand for those that are not finite."""
    return {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
