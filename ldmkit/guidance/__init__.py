r"""Guidance: from a way to bind a conditioning to the denoiser a sampler calls; and wrappers of a denoiser.

A :class:`Guidance` is ``(bind, cond, uncond, levels) -> Denoise``. Guidances compose by wrapping: one that takes ``of``
changes what another gives,

>>> Rescale(of=Interval(of=CFG(7.5), low=0.3, high=5.0), phi=0.7)

:class:`ImageGuidance` takes a *guider*, any function of the decoded estimate. The wrappers of a denoiser,
``Denoise -> Denoise``, act on the estimate of the clean sample: :func:`clip`, :func:`quantize`, :func:`keep_known`.
"""

from ldmkit.guidance.autoguidance import Autoguidance, has_weak
from ldmkit.guidance.cfg import CFG, NoGuidance, PiecewiseCFG
from ldmkit.guidance.contract import Bind, Guidance, PerImage, taken
from ldmkit.guidance.estimate import clip, keep_known, quantize
from ldmkit.guidance.gradient import ClassifierGuidance, ImageGuidance
from ldmkit.guidance.guiders import Downsampled, Guider, Perceptual
from ldmkit.guidance.interval import Interval
from ldmkit.guidance.rescale import DynamicThreshold, Predicting, Rescale

__all__ = [
    "CFG",
    "Autoguidance",
    "Bind",
    "ClassifierGuidance",
    "Downsampled",
    "DynamicThreshold",
    "Guidance",
    "Guider",
    "ImageGuidance",
    "Interval",
    "NoGuidance",
    "PerImage",
    "Perceptual",
    "PiecewiseCFG",
    "Predicting",
    "Rescale",
    "clip",
    "has_weak",
    "keep_known",
    "quantize",
    "taken",
]
