"""Examples of the built-in guidances, with the small models, classifiers and guiders that they take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoise
from ldmkit.guidance import CFG, ImageGuidance
from ldmkit.process import Level, Levels
from ldmkit.testing.example import Example
from ldmkit.testing.use import bind


@dataclass(frozen=True)
class Weak:
    """A weaker model for autoguidance to move away from."""

    def bind(self, cond: Conditioning, levels: Levels) -> Denoise:
        """0.8 of what the stronger one gives."""
        denoise = bind(cond)
        return lambda x, level: 0.8 * denoise(x, level)


def as_it_is(x0: Tensor) -> Tensor:
    """The decoder of a model of pixels."""
    return x0


def bright(image: Tensor, level: Level[float]) -> Tensor:
    """A guider that likes bright images."""
    return -(1 - image).square().flatten(1).mean(dim=1)


def grey(image: Tensor, level: Level[float]) -> Tensor:
    """A guider that likes grey images."""
    return -image.square().flatten(1).mean(dim=1)


def two_classes(x: Tensor, t: Tensor) -> Tensor:
    """A classifier of states: positive or negative on the whole."""
    mean = x.flatten(1).mean(dim=1) * (1 + 0.001 * t)
    return torch.stack([mean, -mean], dim=1)


NETWORKS = {"can-be-written-down": "it holds networks or functions, which are no plain data; files hold no guidance"}

_WEAK = {"weak": Weak(), "scale": 2.0}
_LABELLED = {"classifier": two_classes, "label": 1, "scale": 2.0}
_STEERED = {"guider": bright, "decode": as_it_is, "scale": 2.0}
_NESTED = {"guider": grey, "of": ImageGuidance(bright, of=CFG(3.0))}
_OFF = {"scale": 0.0, "of": CFG(1.0)}

GUIDANCES = (
    Example("guidance", "none", neutral={}),
    Example("guidance", "cfg", {"scale": 3.0}, neutral={"scale": 1.0}, per_image="scale"),
    Example("guidance", "cfg", {"scale": 1.0}, "off", neutral={}, per_image="scale"),
    Example("guidance", "cfg-piecewise", {"log_snr": (-3.0, 4.0), "scale": (1.0, 3.0)}, neutral={"scale": (1.0, 1.0)}),
    Example("guidance", "rescale", {"of": CFG(3.0), "prediction": "v"}, neutral={"of": CFG(1.0)}),
    Example("guidance", "rescale", {"of": CFG(1.0), "phi": 0.0}, "off", neutral={}),
    Example("guidance", "dynamic-threshold", {"of": CFG(5.0), "limit": 0.5}, neutral={"of": CFG(), "limit": math.inf}),
    Example("guidance", "interval", {"of": CFG(3.0), "low": 0.5, "high": 2.0}, "middle", neutral={"low": 2.0}),
    Example("guidance", "interval", {"of": CFG(3.0)}, "everywhere", neutral={"of": CFG(1.0)}),
    Example("guidance", "autoguidance", _WEAK, "alone", neutral={"scale": 1.0}, expected=NETWORKS),
    Example("guidance", "autoguidance", {**_WEAK, "of": CFG(3.0)}, "with cfg", per_image="scale", expected=NETWORKS),
    Example("guidance", "classifier", _LABELLED, neutral={"scale": 0.0}, per_image="scale", expected=NETWORKS),
    Example("guidance", "image", _STEERED, "alone", neutral={"scale": 0.0}, per_image="scale", expected=NETWORKS),
    Example("guidance", "image", _NESTED, "nested", neutral=_OFF, per_image="scale", expected=NETWORKS),
)
"""At least one of each, alone and wrapped around another."""
