r"""Guidance by gradients: the score is moved by that of a likelihood,

.. math::

    \nabla_x \log p(x) + s \, \nabla_x \log p(y \mid x)
    \quad\Longleftrightarrow\quad
    \hat \epsilon = \epsilon - s \, \sigma \, \nabla_x \log p(y \mid x)
    \quad\Longleftrightarrow\quad
    \hat x_0 = x_0 + s \, \frac{\sigma^2}{\alpha} \, \nabla_x \log p(y \mid x)

because :math:`\epsilon = -\sigma \nabla_x \log p` and :math:`x_0 = (x - \sigma \epsilon) / \alpha`. s = 0 is off. The
paper on latent diffusion prints the noise with a plus, which would lead away from y; this is the sign of the score.

A classifier of noisy states gives p directly. :class:`ImageGuidance` asks a *guider* how well the decoded estimate
:math:`D(x_0(x))` fits, and differentiates through first stage and network. At alpha = 0, where the state says nothing,
and at sigma = 0, where nothing is left to move, the estimate stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoise
from ldmkit.guidance.cfg import UNGUIDED
from ldmkit.guidance.contract import Bind, Guidance, check_scale, is_all, of_images, rows, taken, weights
from ldmkit.guidance.guiders import Guider
from ldmkit.process import Level, Levels, Process, log_snr

Classifier = Callable[[Tensor, Tensor], Tensor]
"""``(x, t) -> logits``: (B, C, h, w) noisy states and (B,) times to (B, K), differentiable in x."""


def gain(level: Level[float]) -> float:
    """``sigma**2 / alpha``, what the gradient is multiplied by; 0 at both ends, where nothing is to be moved."""
    return level.sigma**2 / level.alpha if level.alpha else 0.0


@dataclass(frozen=True, eq=False)
class ClassifierGuidance:
    """Guidance by a classifier of noisy states.

    Args:
        classifier: ``(x, t) -> logits``, in eval mode and on the model's device.
        label: the class that is wanted, of all images or one each.
        scale: s, one number or one per image; 0 is off.
        process: what the classifier was trained on. None: the process whose levels are sampled.
        of: the guidance to move.

    Raises:
        ValueError: a scale that is not finite; in a call, another number of labels or scales than images.

    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), section 4 and Algorithm 2.
    """

    classifier: Classifier
    label: int | tuple[int, ...]
    scale: float | tuple[float, ...] = 1.0
    process: Process | None = None
    of: Guidance = UNGUIDED

    def __post_init__(self) -> None:
        check_scale("classifier", self.scale)

    @property
    def needs_uncond(self) -> bool:
        """As the guidance that it moves."""
        return self.of.needs_uncond

    @property
    def needs_grad(self) -> bool:
        """True, unless it is off."""
        return not is_all(self.scale, 0) or self.of.needs_grad

    def take(self, images: Sequence[int]) -> ClassifierGuidance:
        """With the labels, the scales and the inner guidance of these images."""
        label, scale = of_images(self.label, images), of_images(self.scale, images)
        return replace(self, label=label, scale=scale, of=taken(self.of, images))

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """Bind the guidance to move.

        Raises:
            ValueError: not one label and one scale per image; and as ``of``.
        """
        denoise = self.of(bind, cond, uncond, levels)
        if is_all(self.scale, 0):
            return denoise
        weight = weights("classifier", self.scale, cond)
        log_likelihood = self._log_likelihood(cond, levels)

        def guided(x: Tensor, level: Level[float]) -> Tensor:
            x0 = denoise(x, level)
            if gain(level) == 0:
                return x0
            with torch.enable_grad():
                state = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(log_likelihood(state, level).sum(), state)
            return x0 + gradient * (gain(level) * weight(x))

        return guided

    def _log_likelihood(self, cond: Conditioning, levels: Levels) -> Callable[[Tensor, Level[float]], Tensor]:
        """``(x, level) -> log p(label | x)``, (B,), with the state moved to the classifier's process."""
        process = levels.process if self.process is None else self.process
        wanted = _labels(self.label, cond)

        @cache
        def own(level: Level[float]) -> tuple[float, float]:
            there = level if process == levels.process else process.level(process.time(log_snr(level)))
            size = math.hypot(there.alpha, there.sigma) / math.hypot(level.alpha, level.sigma)
            return there.t, size * process.input_scale(there)

        @cache
        def told(t: float, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
            times = torch.full((count,), t, dtype=torch.float32, device=device)
            return times, wanted(count, device, torch.int64)

        def log_likelihood(x: Tensor, level: Level[float]) -> Tensor:
            t, scale = own(level)
            times, label = told(t, x.shape[0], x.device)
            return self.classifier(x * scale, times).log_softmax(dim=1).gather(1, label[:, None])[:, 0]

        return log_likelihood


def _labels(label: int | tuple[int, ...], cond: Conditioning) -> Callable[[int, torch.device, torch.dtype], Tensor]:
    if isinstance(label, Sequence):
        return rows("classifier", "labels", label, cond)
    return lambda count, device, dtype: torch.full((count,), label, dtype=dtype, device=device)


@dataclass(frozen=True, eq=False)
class ImageGuidance:
    """Guidance by anything that can be said about the image, with a gradient through decoder and network.

    Several guiders at once are one that adds them. Where guidances nest, each moves the estimate of the one inside.

    Args:
        guider: ``(image, level) -> log p(y | image)`` per image, (B,).
        decode: estimates of x0 to images, differentiable: ``model.stage.decode`` (``model.decode`` would cut the
            gradient off). None: the guider sees the latents.
        scale: s, one number or one per image; 0 is off.
        of: the guidance to move.

    Raises:
        ValueError: a scale that is not finite; in a call, another number of scales than images, or a guider that does
            not give a number per image which depends on the state.

    Source: Rombach et al. 2022 (arXiv 2112.10752), appendix C, with the sign of the score.
    """

    guider: Guider
    decode: Callable[[Tensor], Tensor] | None = None
    scale: float | tuple[float, ...] = 1.0
    of: Guidance = UNGUIDED

    def __post_init__(self) -> None:
        check_scale("image", self.scale)

    @property
    def needs_uncond(self) -> bool:
        """As the guidance that it moves."""
        return self.of.needs_uncond

    @property
    def needs_grad(self) -> bool:
        """True, unless it is off."""
        return not is_all(self.scale, 0) or self.of.needs_grad

    def take(self, images: Sequence[int]) -> ImageGuidance:
        """With what guider, scales and inner guidance hold for these images."""
        scale = of_images(self.scale, images)
        return replace(self, guider=taken(self.guider, images), scale=scale, of=taken(self.of, images))

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """Bind the guidance to move.

        Raises:
            ValueError: not one scale per image; and as ``of``.
        """
        denoise = self.of(bind, cond, uncond, levels)
        if is_all(self.scale, 0):
            return denoise
        weight = weights("image", self.scale, cond)

        def guided(x: Tensor, level: Level[float]) -> Tensor:
            if gain(level) == 0:
                return denoise(x, level)
            inside = torch.is_grad_enabled() and x.requires_grad  # another guidance differentiates through this one
            with torch.enable_grad():
                state = x if inside else x.detach().requires_grad_()
                x0 = denoise(state, level)
                log_likelihood = self._log_likelihood(x0, level)
                (gradient,) = torch.autograd.grad(log_likelihood.sum(), state, retain_graph=inside)
            return (x0 if inside else x0.detach()) + gradient * (gain(level) * weight(x))

        return guided

    def _log_likelihood(self, x0: Tensor, level: Level[float]) -> Tensor:
        found = self.guider(x0 if self.decode is None else self.decode(x0), level)
        if found.shape != x0.shape[:1]:
            raise ValueError(
                f"the guider of guidance 'image' gives {tuple(found.shape)} for {x0.shape[0]} images: it should be one "
                "log-likelihood per image"
            )
        if not found.requires_grad:
            raise ValueError(
                "what the guider of guidance 'image' gives has no gradient: decode with model.stage.decode "
                "(model.decode cuts it off), detach nothing, and call in torch.no_grad, not torch.inference_mode"
            )
        return found
