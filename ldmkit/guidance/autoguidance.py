r"""Autoguidance: away from a weaker version of the model itself.

.. math:: \hat x_0 = x_0^{weak} + s \, (x_0 - x_0^{weak})

The weaker model is smaller or less trained, for the same task and the same condition. s = 1 is off. With ``of`` another
guidance its estimate stands in the place of :math:`x_0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoise
from ldmkit.guidance.cfg import UNGUIDED
from ldmkit.guidance.contract import Bind, Guidance, check_scale, is_all, of_images, taken, weights
from ldmkit.process import Level, Levels


@runtime_checkable
class Weak(Protocol):
    """What can be bound to a conditioning and the levels of a call, as :class:`ldmkit.Denoiser` can."""

    def bind(self, cond: Conditioning, levels: Levels) -> Denoise: ...


@dataclass(frozen=True, eq=False)
class Autoguidance:
    """Guidance by a weaker version of the model.

    Args:
        weak: the weaker model's denoiser, ``small.denoiser``, on the same device; its process and prediction may be
            others, its latents may not.
        scale: s, one number or one per image; 1 is off.
        of: the guidance whose estimate is moved away from the weaker one.
        cond: what the weaker model is conditioned on, ``small.conditioner(batch)``. None: as the model, where both
            have the same conditioners, weights included.

    Raises:
        TypeError: ``weak`` cannot be bound.
        ValueError: a scale that is not finite, a weaker model with active dropout, or, in a call, another number of
            scales than images.

    Source: Karras et al. 2024 (arXiv 2406.02507), section 4.
    """

    weak: Weak
    scale: float | tuple[float, ...] = 1.0
    of: Guidance = UNGUIDED
    cond: Conditioning | None = None

    def __post_init__(self) -> None:
        check_scale("autoguidance", self.scale)
        if not isinstance(self.weak, Weak):
            raise TypeError(
                f"guidance 'autoguidance' needs a denoiser as the weaker model, got {type(self.weak).__name__}: of a "
                "LatentDiffusion it is model.denoiser"
            )
        if isinstance(self.weak, nn.Module) and any(
            isinstance(m, nn.Dropout) and m.training and m.p for m in self.weak.modules()
        ):
            raise ValueError(
                "the weaker model of guidance 'autoguidance' is in training mode, where dropout draws at random: call "
                "its eval() first"
            )

    @property
    def needs_uncond(self) -> bool:
        """As the guidance that it strengthens."""
        return self.of.needs_uncond

    @property
    def needs_grad(self) -> bool:
        """As the guidance that it strengthens."""
        return self.of.needs_grad

    def take(self, images: Sequence[int]) -> Autoguidance:
        """With the scales, the condition and the inner guidance of these images."""
        cond = None if self.cond is None else self.cond.map(lambda value: value[list(images)])
        return replace(self, scale=of_images(self.scale, images), of=taken(self.of, images), cond=cond)

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """Bind ``of`` and the weaker model.

        Raises:
            ValueError: not one scale per image; and as ``of``.
        """
        strong = self.of(bind, cond, uncond, levels)
        if is_all(self.scale, 1):
            return strong
        weak = self.weak.bind(cond if self.cond is None else self.cond, levels)
        weight = weights("autoguidance", self.scale, cond)

        def guided(x: Tensor, level: Level[float]) -> Tensor:
            return weak(x, level).lerp(strong(x, level), weight(x))

        return guided


def has_weak(guidance: object) -> bool:
    """Whether a guidance, or one that it wraps, binds a network of its own."""
    return guidance is not None and (isinstance(guidance, Autoguidance) or has_weak(getattr(guidance, "of", None)))
