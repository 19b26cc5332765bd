r"""Rescaling and thresholding: what keeps a strongly guided estimate from being over-exposed.

A prediction is linear in state and estimate, :math:`x_0 = a x + b \, out`, with a as in
:data:`ldmkit.denoiser.PREDICTIONS`. Multiplying the prediction by k is therefore, whatever b,

.. math:: x_0 \mapsto a x + k \, (x_0 - a x), \qquad
          k = 1 + \varphi \left(\frac{\mathrm{std}(x_0^c - a x)}{\mathrm{std}(x_0 - a x)} - 1\right)

with the conditional estimate :math:`x_0^c`: the guided prediction gets the deviation of the conditional one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import PREDICTIONS, Denoise
from ldmkit.guidance.contract import Bind, Guidance, taken
from ldmkit.process import Level, Levels


@runtime_checkable
class Predicting(Protocol):
    """A bound denoiser that says what its network outputs."""

    prediction: str


@dataclass(frozen=True)
class Rescale:
    """The guided prediction with the standard deviation of the conditional one, per image.

    It acts in the space of the model's prediction, which bound denoisers of ldmkit name. Where ``of`` asks for the
    conditional estimate alone, nothing changes.

    Args:
        of: the guidance to rescale.
        phi: the share of the rescaled prediction, in [0, 1]; 0 is off.
        prediction: ``eps``, ``v``, ``x0`` or ``flow``. None: the model's own.

    Raises:
        ValueError: phi outside [0, 1], an unknown prediction, or, in a call, None where the model does not tell.

    Source: Lin et al. 2024 (arXiv 2305.08891), section 3.4.
    """

    of: Guidance
    phi: float = 0.7
    prediction: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise ValueError(f"guidance 'rescale' needs phi in [0, 1], got {self.phi}")
        if self.prediction is not None and self.prediction not in PREDICTIONS:
            raise ValueError(
                f"guidance 'rescale' knows the predictions {', '.join(PREDICTIONS)}, got {self.prediction!r}"
            )

    @property
    def needs_uncond(self) -> bool:
        """As the guidance that it rescales."""
        return self.of.needs_uncond

    @property
    def needs_grad(self) -> bool:
        """As the guidance that it rescales."""
        return self.of.needs_grad

    def take(self, images: Sequence[int]) -> Rescale:
        """With what ``of`` holds for these images."""
        return replace(self, of=taken(self.of, images))

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """Bind ``of``, and listen to the conditional estimate that it asks for.

        Raises:
            ValueError: the prediction is neither given nor told by what ``bind`` gives; and as ``of``.
        """
        if self.phi == 0:
            return self.of(bind, cond, uncond, levels)
        heard: list[tuple[Tensor, str]] = []

        def listening(c: Conditioning) -> Denoise:
            denoise = bind(c)
            prediction = self.prediction or _told_by(denoise)

            def listened(x: Tensor, level: Level[float]) -> Tensor:
                x0 = denoise(x, level)
                heard.append((x0, prediction))
                return x0

            return listened

        guided = self.of(listening, cond, uncond, levels)

        def rescaled(x: Tensor, level: Level[float]) -> Tensor:
            x0 = guided(x, level)
            asked, prediction = heard.pop()
            heard.clear()
            if asked is x0:
                return x0
            a, _ = PREDICTIONS[prediction].x0(level)
            return self._rescaled(x * a, x0, asked[-x.shape[0] :])

        return rescaled

    def _rescaled(self, part: Tensor, x0: Tensor, given: Tensor) -> Tensor:
        """x0 with its prediction rescaled; ``part`` is a x."""
        dims = tuple(range(1, x0.ndim))
        now = (x0 - part).std(dims, correction=0, keepdim=True)
        wanted = (given - part).std(dims, correction=0, keepdim=True)
        k = 1 + self.phi * ((wanted / now).where(now > 0, 1) - 1)
        return part.lerp(x0, k)


def _told_by(denoise: object) -> str:
    if isinstance(denoise, Predicting):
        return denoise.prediction
    raise ValueError(
        "guidance 'rescale' acts on the model's prediction, and this denoiser does not tell which that is: say it with "
        f"prediction=, one of {', '.join(PREDICTIONS)}"
    )


@dataclass(frozen=True)
class DynamicThreshold:
    """Clamps each guided estimate to a quantile of its own size and divides it down to the range of the data.

    For models of pixels, whose data have a range; it is no thresholding of latents.

    Args:
        of: the guidance whose estimate is clamped.
        quantile: the share of values that may stay as they are, in (0, 1].
        limit: the range of the data is [-limit, limit]; smaller estimates are left alone, and inf is off.

    Raises:
        ValueError: quantile or limit outside its range.

    Source: Saharia et al. 2022 (arXiv 2205.11487), section 2.3; the quantile is a value of the image, not interpolated.
    """

    of: Guidance
    quantile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(f"guidance 'dynamic-threshold' needs quantile in (0, 1], got {self.quantile}")
        if not self.limit > 0:
            raise ValueError(f"guidance 'dynamic-threshold' needs limit > 0, got {self.limit}")

    @property
    def needs_uncond(self) -> bool:
        """As the guidance that it clamps."""
        return self.of.needs_uncond

    @property
    def needs_grad(self) -> bool:
        """As the guidance that it clamps."""
        return self.of.needs_grad

    def take(self, images: Sequence[int]) -> DynamicThreshold:
        """With what ``of`` holds for these images."""
        return replace(self, of=taken(self.of, images))

    def __call__(self, bind: Bind, cond: Conditioning, uncond: Conditioning | None, levels: Levels) -> Denoise:
        """Bind ``of``."""
        denoise = self.of(bind, cond, uncond, levels)
        if self.limit == math.inf:
            return denoise

        def clamped(x: Tensor, level: Level[float]) -> Tensor:
            x0 = denoise(x, level)
            size = x0.abs().flatten(1)
            rank = math.ceil(self.quantile * size.shape[1])
            bound = size.kthvalue(rank).values.clamp(min=self.limit).view(-1, *[1] * (x0.ndim - 1))
            return x0.clamp(-bound, bound) * (self.limit / bound)

        return clamped
