"""Wrappers of a denoiser, ``Denoise -> Denoise``: they act on the estimate of the clean sample and on nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldmkit.denoiser import Denoise


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
