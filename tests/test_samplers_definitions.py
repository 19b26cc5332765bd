"""Samplers against the steps of their papers, one at a time and in float64, in the papers' own variables."""

import math

import pytest
import torch
from naming import named

from ldmkit.noise import Noise
from ldmkit.process import EDM, VP, RectifiedFlow, karras, linspace, log_snr, trailing, uniform
from ldmkit.samplers import reverse
from ldmkit.samplers.ddim import DDIM
from ldmkit.samplers.dpmpp import DPMPP2M, DPMPP2MSDE, DPMPP2S
from ldmkit.samplers.euler import Euler, EulerAncestral
from ldmkit.samplers.heun import Heun
from ldmkit.samplers.unipc import UniPC
from ldmkit.testing import Gaussian

DATA = Gaussian(mean=0.4, std=0.6)
LISTS = [
    uniform(VP(), 7),
    trailing(VP(), 7),
    trailing(VP(), 1),
    karras(EDM(), 7),
    linspace(RectifiedFlow(), 8)[1:],
    reverse(uniform(VP(), 7)),
]
FALLING = LISTS[:-1]


def start(levels):
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return levels.start.alpha * DATA.mean + DATA.spread(levels.start) * x


def unused(like, stop):
    raise AssertionError("a deterministic sampler drew noise")


def ratio(level):
    return level.sigma / level.alpha


def lam(level):
    return log_snr(level) / 2


def denoised(X, level):
    """D(X; sigma) of the papers that write the state as X = x / alpha."""
    return DATA.denoise(level.alpha * X, level)


def euler_ancestral(x, levels, noise, eta):
    """k-diffusion's form: down by Euler's method, up by noise."""
    X = x / levels.start.alpha
    for now, nxt in levels.steps():
        up = eta and min(ratio(nxt), eta * (ratio(nxt) ** 2 * (1 - ratio(nxt) ** 2 / ratio(now) ** 2)) ** 0.5)
        down = (ratio(nxt) ** 2 - up**2) ** 0.5
        slope = (X - denoised(X, now)) / ratio(now)
        X = X + (down - ratio(now)) * slope
        if up:
            X = X + up * noise(X, nxt)
    return X * levels.landing.alpha


def heun(x, levels):
    """Karras et al. 2022, algorithm 1."""
    X = x / levels.start.alpha
    for now, nxt in levels.steps():
        slope = (X - denoised(X, now)) / ratio(now)
        ahead = X + (ratio(nxt) - ratio(now)) * slope
        if nxt.sigma:
            slope = (slope + (ahead - denoised(ahead, nxt)) / ratio(nxt)) / 2
        X = X + (ratio(nxt) - ratio(now)) * slope
    return X * levels.landing.alpha


def dpmpp_2m(x, levels):
    """Lu et al. 2022, algorithm 2; the first step and the one onto a clean level by DDIM."""
    before = None
    for now, nxt in levels.steps():
        h, x0 = lam(nxt) - lam(now), DATA.denoise(x, now)
        estimate = x0
        if before is not None and nxt.sigma:
            r = (lam(now) - lam(before[0])) / h
            estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before[1]
        x = nxt.sigma / now.sigma * x - nxt.alpha * math.expm1(-h) * estimate
        before = now, x0
    return x


def dpmpp_2s(x, levels):
    """Lu et al. 2022, algorithm 1, r = 1/2; the step onto a clean level by DDIM."""
    for now, nxt in levels.steps():
        h, estimate = lam(nxt) - lam(now), DATA.denoise(x, now)
        if nxt.sigma:
            half = levels.process.level(levels.process.time(lam(now) + lam(nxt)))
            u = half.sigma / now.sigma * x - half.alpha * math.expm1(-h / 2) * estimate
            estimate = DATA.denoise(u, half)
        x = nxt.sigma / now.sigma * x - nxt.alpha * math.expm1(-h) * estimate
    return x


def dpmpp_2m_sde(x, levels, noise, eta):
    """The midpoint solver of the SDE, in k-diffusion's variables."""
    X, before = x / levels.start.alpha, None
    for now, nxt in levels.steps():
        x0 = denoised(X, now)
        if nxt.sigma == 0:
            return x0 * nxt.alpha
        h = lam(nxt) - lam(now)
        X = ratio(nxt) / ratio(now) * math.exp(-eta * h) * X - math.expm1(-h - eta * h) * x0
        if before is not None:
            X = X - math.expm1(-h - eta * h) / 2 * h / (lam(now) - lam(before[0])) * (x0 - before[1])
        X = X + noise(X, nxt) * ratio(nxt) * (-math.expm1(-2 * eta * h)) ** 0.5
        before = now, x0
    return X * levels.landing.alpha


def unipc(x, levels, order):
    """Zhao et al. 2023 with B(h) = exp(h) - 1 on data prediction: predict, evaluate, correct from the state before."""
    clean, stops, states, estimates, used = levels.landing.sigma == 0, levels.stops, [], [], 0
    for i, now in enumerate(stops[:-1]):
        estimates.append(DATA.denoise(x, now))
        if i:
            x = unipc_step(states[-1], stops[: i + 1], estimates[:-1], used, estimates[-1])
        states.append(x)
        used = min(order, i + 1, len(levels) - i) if clean else min(order, i + 1)
        x = unipc_step(x, stops[: i + 2], estimates, used)
    return x


def unipc_step(x, stops, estimates, order, ahead=None):
    now, nxt, x0 = stops[-2], stops[-1], estimates[-1]
    x = nxt.sigma / now.sigma * x + (nxt.alpha - nxt.sigma / now.sigma * now.alpha) * x0
    h = lam(nxt) - lam(now)
    past = [(lam(stops[-2 - k]) - lam(now)) / h for k in range(1, order)]
    change = [(estimates[-1 - k] - x0) / r for k, r in zip(range(1, order), past, strict=True)]
    if ahead is not None:
        past, change = [*past, 1.0], [*change, ahead - x0]
    if not change:
        return x
    weights = [0.5]
    if len(change) > 1:
        phi, b = math.expm1(-h) / -h - 1, []
        for k in range(1, len(change) + 1):
            b.append(phi * math.factorial(k) / math.expm1(-h))
            phi = phi / -h - 1 / math.factorial(k + 1)
        powers = torch.tensor([[r**k for r in past] for k in range(len(past))], dtype=torch.float64)
        weights = torch.linalg.solve(powers, torch.tensor(b, dtype=torch.float64)).tolist()
    return x - nxt.alpha * math.expm1(-h) * sum(w * d for w, d in zip(weights, change, strict=True))


@pytest.mark.parametrize("levels", LISTS, ids=str)
@pytest.mark.parametrize(
    ("sampler", "definition"),
    [
        (Euler(), lambda x, levels: euler_ancestral(x, levels, unused, 0.0)),
        (Heun(), heun),
        (DPMPP2M(), dpmpp_2m),
        (DPMPP2S(), dpmpp_2s),
        (UniPC(2), lambda x, levels: unipc(x, levels, 2)),
        (UniPC(3), lambda x, levels: unipc(x, levels, 3)),
    ],
    ids=named,
)
def test_a_deterministic_sampler_is_its_definition(sampler, definition, levels):
    x = start(levels)
    got = sampler(DATA.denoise, x, levels, unused)
    torch.testing.assert_close(got, definition(x, levels), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("levels", FALLING, ids=str)
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize(("sampler", "definition"), [(EulerAncestral, euler_ancestral), (DPMPP2MSDE, dpmpp_2m_sde)])
def test_a_stochastic_sampler_is_its_definition(sampler, definition, eta, levels):
    x, noise = start(levels), Noise((3,))
    got = sampler(eta)(DATA.denoise, x, levels, noise)
    torch.testing.assert_close(got, definition(x, levels, noise, eta), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("levels", [*FALLING, linspace(RectifiedFlow(), 8)], ids=str)
@pytest.mark.parametrize(
    ("sampler", "same"),
    [
        (Euler(), DDIM()),
        (EulerAncestral(eta=0.0), DDIM()),
        (EulerAncestral(), DDIM(eta=1.0)),
        (EulerAncestral(eta=0.3), DDIM(eta=0.3)),
        (DPMPP2MSDE(eta=0.0), DPMPP2M()),
    ],
    ids=str,
)
def test_two_names_of_one_sampler_give_one_result(sampler, same, levels):
    x, noise = start(levels), Noise((3,))
    expected = same(DATA.denoise, x, levels, noise)
    torch.testing.assert_close(sampler(DATA.denoise, x, levels, noise), expected, rtol=1e-13, atol=1e-13)
