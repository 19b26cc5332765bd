"""DDIM inversion: the way up that DDIM comes down again."""

import pytest
import torch

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoiser
from ldmkit.process import EDM, VP, Levels, RectifiedFlow, at, karras, leading, linspace, trailing, uniform
from ldmkit.samplers import reverse
from ldmkit.samplers.ddim import DDIM
from ldmkit.samplers.ddim_inversion import DDIMInversion
from ldmkit.testing import Gaussian, GaussianBackbone, convergence_order

DATA = Gaussian(mean=0.4, std=0.6)
LISTS = [uniform(VP(), 12), trailing(VP(), 12), leading(VP(), 12), karras(EDM(), 12), linspace(RectifiedFlow(), 12)]


def image():
    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return DATA.mean + DATA.std * noise


def unused(like, stop):
    raise AssertionError("a deterministic sampler drew noise")


def there_and_back(inversion, levels, denoise=DATA.denoise):
    noise = inversion(denoise, image(), reverse(levels), unused)
    return DDIM()(denoise, noise, levels, unused)


def even_times(n, landing=100.0):
    process = VP()
    return at(process, [900 - 800 * i / n for i in range(n)], landing=process.level(landing))


@pytest.mark.parametrize("levels", LISTS, ids=str)
def test_enough_iterations_are_the_exact_inverse_of_ddim(levels):
    """From index 0 of a table and from a clean level, to the end of a table and to pure noise."""
    torch.testing.assert_close(there_and_back(DDIMInversion(iterations=250), levels), image(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_each_iteration_raises_the_order_of_the_way_there_and_back(iterations):
    def error(levels):
        return float((there_and_back(DDIMInversion(iterations), levels) - image()).abs().max())

    assert convergence_order(error, even_times, (64, 128, 256, 512)) == pytest.approx(iterations, abs=0.15)


@pytest.mark.parametrize("iterations", [1, 2])
def test_the_way_up_has_order_one(iterations):
    def error(levels):
        up = reverse(levels)
        got = DDIMInversion(iterations)(DATA.denoise, image(), up, unused)
        return float((got - DATA.flow(image(), up.start, up.landing)).abs().max())

    assert convergence_order(error, even_times, (64, 128, 256, 512)) == pytest.approx(1, abs=0.15)


def test_one_iteration_is_the_published_step():
    """x0 and the noise from the network's own noise at x and the time of the next level."""
    levels = reverse(trailing(VP(), 12))
    x = image()
    for now, nxt in levels.steps():
        eps = (x - nxt.alpha * DATA.denoise(x, nxt)) / nxt.sigma
        x = nxt.alpha * (x - now.sigma * eps) / now.alpha + nxt.sigma * eps
    got = DDIMInversion()(DATA.denoise, image(), levels, unused)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_denoiser_is_asked_at_the_noisier_level_of_each_step(iterations):
    levels, asked = reverse(trailing(VP(), 6)), []
    DDIMInversion(iterations)(lambda x, level: asked.append(level) or DATA.denoise(x, level), image(), levels, unused)
    assert asked == [nxt for _, nxt in levels.steps() for _ in range(iterations)]


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_every_prediction_climbs_the_same_way(prediction):
    levels = reverse(trailing(VP(), 12))
    denoiser = Denoiser(GaussianBackbone(VP(), prediction, data=DATA), VP(), prediction)
    with torch.no_grad():
        got = DDIMInversion()(denoiser.bind(Conditioning(), levels), image(), levels, unused)
    torch.testing.assert_close(got, DDIMInversion()(DATA.denoise, image(), levels, unused), rtol=1e-9, atol=1e-9)


def test_a_slice_climbs_on():
    levels = reverse(trailing(VP(), 10))
    half = DDIMInversion()(DATA.denoise, image(), levels[:4], unused)
    whole = DDIMInversion()(DATA.denoise, image(), levels, unused)
    assert torch.equal(DDIMInversion()(DATA.denoise, half, levels[4:], unused), whole)


def test_reversing_twice_is_nothing():
    levels = karras(EDM(), 5)
    assert reverse(reverse(levels)) == levels
    assert (reverse(levels).start, reverse(levels).landing) == (levels.landing, levels.start)


FLOW = RectifiedFlow()


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (trailing(VP(), 5), r"climbs .* ldmkit.samplers.reverse\(levels\)"),
        (at(VP(), [100, 50], landing=VP().level(300.0)), "noise rises"),
        (Levels(FLOW, (FLOW.level(0.0), FLOW.level(1000.0))), "in one step"),
    ],
)
def test_levels_it_cannot_climb_are_refused_before_the_denoiser_is_asked(levels, message):
    with pytest.raises(ValueError, match=message):
        DDIMInversion().check(levels)
    with pytest.raises(ValueError, match=message):
        DDIMInversion()(lambda x, level: pytest.fail("asked"), image(), levels, unused)


def test_no_iterations_are_refused():
    with pytest.raises(ValueError, match="iterations >= 1"):
        DDIMInversion(iterations=0)
