r"""Guidance: from a way to bind a conditioning to the denoiser a sampler calls; and wrappers of a denoiser.

A :class:`Guidance` is ``(bind, cond, uncond, levels) -> Denoise``. Classifier-free guidance,

.. math:: \hat x_0 = x_0(\varnothing) + s \, (x_0(c) - x_0(\varnothing)),

is the same on eps, v, x0 and flow, because each is linear in x0 at a fixed state; s = 1 means off.

The wrappers, ``Denoise -> Denoise``, act on the estimate of the clean sample: :func:`clip`, :func:`quantize`,
:func:`keep_known`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning, batch
from ldmkit.denoiser import Denoise
from ldmkit.process import Level, Levels

Bind = Callable[[Conditioning], Denoise]
"""Binds a conditioning for one call, with its caches; the levels are already known to it."""


@runtime_checkable
class Guidance(Protocol):
    """``(bind, cond, uncond, levels) -> Denoise``.

    ``needs_uncond``: whether it reads ``uncond`` at all; ``needs_grad``: whether it differentiates through the
    network, so that the call may not run in inference mode.
    """

    @property
    def needs_uncond(self) -> bool: ...
    @property
    def needs_grad(self) -> bool: ...

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise: ...


@dataclass(frozen=True)
class NoGuidance:
    """The conditional model as it is."""

    needs_uncond = False
    needs_grad = False

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """``bind(cond)``."""
        return bind(cond)


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance in one batched call, the unconditional half first.

    Args:
        scale: s, one number or one per image; 1 is off.

    Raises:
        ValueError: a scale that is not finite.

    Source: Ho and Salimans 2022, eq. 6; Rombach et al. 2022, section 4.3.1.
    """

    scale: float | tuple[float, ...] = 1.0

    needs_grad = False

    def __post_init__(self) -> None:
        if not all(torch.isfinite(torch.tensor(self.scale)).reshape(-1).tolist()):
            raise ValueError(f"guidance 'cfg' needs a finite scale, got {self.scale}")

    @property
    def needs_uncond(self) -> bool:
        """False at scale 1, where one half is enough."""
        return self.scale != 1

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """Bind ``[uncond, cond]`` once.

        Raises:
            ValueError: there is nothing to guide by, or not one scale per image.
        """
        if not self.needs_uncond:
            return bind(cond)
        if uncond is None or cond.batch_size is None:
            raise ValueError(
                f"guidance 'cfg' with scale {self.scale} needs a conditioning and its null, and the model has no "
                "conditioner: use scale 1 or guidance 'none'"
            )
        denoise = bind(batch([uncond, cond]))
        weight = self._weight(cond)

        def guided(x: Tensor, level: Level[float]) -> Tensor:
            without, given = denoise(torch.cat([x, x]), level).chunk(2)
            return without.lerp(given, weight if isinstance(weight, float) else weight.to(x))

        return guided

    def _weight(self, cond: Conditioning) -> float | Tensor:
        if isinstance(self.scale, int | float):
            return float(self.scale)
        if len(self.scale) != cond.batch_size:
            raise ValueError(f"guidance 'cfg' has {len(self.scale)} scales for {cond.batch_size} images")
        device = next(iter(cond.filled().values())).device
        return torch.tensor(self.scale, dtype=torch.float32, device=device).view(-1, 1, 1, 1)


def clip(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Clamp the estimate of x0: for a model of pixels (the original's ``clip_denoised``); latents have no bounds."""
    return lambda x, level: denoise(x, level).clamp(low, high)


def quantize(denoise: Denoise, nearest_code: Callable[[Tensor], Tensor]) -> Denoise:
    """Snap the estimate of x0 to the codebook of a VQ first stage (the original's ``quantize_denoised``).

    Args:
        denoise: the denoiser to wrap.
        nearest_code: ``z -> z``, both scaled: ``first_stage.nearest_code``.
    """
    return lambda x, level: nearest_code(denoise(x, level))


def keep_known(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Put the known part into the estimate of x0: noise-free inpainting with any model.

    Unlike :func:`ldmkit.samplers.blend`, which replaces the *state* before each step as the original does, nothing is
    drawn, and the result holds the known part exactly wherever the trajectory lands clean.

    Args:
        denoise: the denoiser to wrap.
        known: (B, C, h, w) clean latents.
        mask: (B, 1, h, w) in [0, 1], 1 = regenerate.
    """
    return lambda x, level: torch.lerp(known.to(x), denoise(x, level), mask.to(x))
