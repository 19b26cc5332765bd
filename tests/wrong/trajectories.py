"""Wrong processes and wrong samplers."""

import math
from dataclasses import dataclass, replace

import torch

from ldmkit.process import Level, RectifiedFlow, linspace
from ldmkit.samplers.ddim import fresh_noise
from ldmkit.testing import Example
from wrong.catalogue import caught_by, right

FLOW = Example("process", "rectified-flow")


@caught_by("levels-are-finite", FLOW)
class HasNegativeAlpha(RectifiedFlow):
    def level(self, t):
        level = super().level(t)
        return replace(level, alpha=level.alpha - 0.1)


@caught_by("noise-grows-with-time", FLOW)
class Wavers(RectifiedFlow):
    def level(self, t):
        u = t / self.steps
        sin = torch.sin if isinstance(t, torch.Tensor) else math.sin
        return replace(super().level(self.steps * (u + 0.1 * sin(6 * math.pi * u))), t=t)


@caught_by("clean-level-has-no-noise", FLOW)
class HasADirtyCleanLevel(RectifiedFlow):
    clean = Level(0.0, 1.0, 0.1)


@caught_by("time-inverts-log-snr", FLOW)
class MistakesTheRatio(RectifiedFlow):
    def time(self, log_snr):
        return super().time(2 * log_snr)


@caught_by("time-is-clamped", FLOW)
class OverflowsWhereClean(RectifiedFlow):
    def time(self, log_snr):
        return self.steps / (1 + math.exp(log_snr / 2))


@caught_by("levels-per-sample-equal-floats", FLOW)
class ForgetsTheShape(RectifiedFlow):
    def level(self, t):
        level = super().level(t)
        return replace(level, alpha=level.alpha.flatten()) if isinstance(t, torch.Tensor) else level


@caught_by("levels-are-as-many-as-asked", FLOW)
class AddsAStep(RectifiedFlow):
    def levels(self, n):
        return linspace(self, n + (n > 2))


@caught_by("no-steps-are-refused", FLOW)
class MakesAtLeastOneStep(RectifiedFlow):
    def levels(self, n):
        return linspace(self, max(n, 1))


@caught_by("training-times-lie-in-its-range", FLOW)
class TrainsBeyondItsRange(RectifiedFlow):
    def draw(self, u):
        return super().draw(1.1 * u)


@caught_by("training-times-are-quantiles", FLOW)
class DrawsBackwards(RectifiedFlow):
    def draw(self, u):
        return super().draw(1 - u)


@caught_by("input-scale-is-positive", FLOW)
class VanishesAtTheEnd(RectifiedFlow):
    def input_scale(self, level):
        return level.alpha


@caught_by("is-a-value", FLOW)
class IsEqualToItselfAlone(RectifiedFlow):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@caught_by("default-device-does-not-matter", FLOW)
class UsesTheDefaultDevice(RectifiedFlow):
    def time(self, log_snr):
        return super().time(log_snr)

    def level(self, t):
        return super().level(t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64).item())


@dataclass(frozen=True)
class Steps:
    """DDIM with its parts apart, so that each can go wrong alone."""

    def __call__(self, denoise, x, levels, noise, at_stop=None):
        for now, nxt in levels.steps():
            x = at_stop(x, now) if at_stop is not None else x
            x = self.step(x, denoise(x, now), now, nxt, noise)
        return x

    def step(self, x, x0, now, nxt, noise):
        keep = nxt.sigma / now.sigma
        return keep * x + (nxt.alpha - keep * now.alpha) * x0


STEPS = right("sampler", Steps)


@caught_by("keeps-shape-and-precision", STEPS, single_step=False)
class EndsInFloat32(Steps):
    def __call__(self, denoise, x, levels, noise, at_stop=None):
        return super().__call__(denoise, x, levels, noise, at_stop).float()


@caught_by("stops-once-at-each-level", STEPS)
class StopsWhereItLands(Steps):
    def __call__(self, denoise, x, levels, noise, at_stop=None):
        x = super().__call__(denoise, x, levels, noise, at_stop)
        return x if at_stop is None else at_stop(x, levels.landing)


@caught_by("stops-before-each-step", STEPS)
class StopsTooLate(Steps):
    def __call__(self, denoise, x, levels, noise, at_stop=None):
        for now, nxt in levels.steps():
            x0 = denoise(x, now)
            x = at_stop(x, now) if at_stop is not None else x
            x = self.step(x, x0, now, nxt, noise)
        return x


@caught_by("goes-on-with-what-at-stop-returns", STEPS)
class IgnoresWhatAtStopReturns(Steps):
    def __call__(self, denoise, x, levels, noise, at_stop=None):
        return super().__call__(denoise, x, levels, noise, at_stop and (lambda x, now: (at_stop(x, now), x)[1]))


@caught_by("states-handed-out-stay-as-they-are", STEPS)
class WorksInPlace(Steps):
    def __call__(self, denoise, x, levels, noise, at_stop=None):
        return super().__call__(denoise, x.clone(), levels, noise, at_stop)

    def step(self, x, x0, now, nxt, noise):
        return x.copy_(super().step(x, x0, now, nxt, noise))


@caught_by("noise-is-drawn-once-per-level", STEPS)
class DrawsTwice(Steps):
    def step(self, x, x0, now, nxt, noise):
        up = fresh_noise(now, nxt)
        keep = math.sqrt(nxt.sigma**2 - up**2) / now.sigma
        fresh = (noise(x, nxt) + noise(x, nxt)) / math.sqrt(2)
        return keep * x + (nxt.alpha - keep * now.alpha) * x0 + up * fresh


@caught_by("says-whether-it-draws-noise", STEPS)
class SaysThatItDrawsNoise(Steps):
    stochastic = True

    def check(self, levels):
        for now, _ in levels.steps():
            if now.sigma == 0:
                raise ValueError("it cannot leave a clean level")

    def __call__(self, denoise, x, levels, noise, at_stop=None):
        self.check(levels)
        return super().__call__(denoise, x, levels, noise, at_stop)


@caught_by("refuses-levels-before-it-begins", STEPS)
class RefusesHalfWay(SaysThatItDrawsNoise):
    stochastic = False

    def __call__(self, denoise, x, levels, noise, at_stop=None):
        x = Steps.__call__(self, denoise, x, levels, noise, at_stop)
        if not levels.falling:
            raise ValueError("noise must fall")
        return x


@caught_by("has-the-order-it-declares", STEPS)
class ClaimsTheSecondOrder(Steps):
    order = 2


@caught_by("ends-in-the-distribution-of-the-data", STEPS)
class AddsTooMuchNoise(Steps):
    def step(self, x, x0, now, nxt, noise):
        return super().step(x, x0, now, nxt, noise) + 0.3 * fresh_noise(now, nxt) * noise(x, nxt)


@caught_by("a-slice-continues-the-trajectory", STEPS)
class RemembersItsFirstEstimate(Steps):
    def __call__(self, denoise, x, levels, noise, at_stop=None):
        last = None
        for now, nxt in levels.steps():
            x = at_stop(x, now) if at_stop is not None else x
            x0 = denoise(x, now)
            x = self.step(x, x0 if last is None else 1.5 * x0 - 0.5 * last, now, nxt, noise)
            last = x0
        return x


@caught_by("pure-noise-is-finite-or-refused", STEPS)
class DividesByAlpha(Steps):
    def step(self, x, x0, now, nxt, noise):
        return super().step(x, x0, now, nxt, noise) + (torch.tensor(0.0) / torch.tensor(now.alpha))
