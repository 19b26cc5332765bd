"""Samplers against the exact solution for Gaussian data, and against their own definition."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoiser
from ldmkit.guidance import keep_known
from ldmkit.noise import Noise
from ldmkit.process import EDM, VP, RectifiedFlow, at, karras, leading, linspace, log_snr, trailing, uniform
from ldmkit.samplers import blend, in_turn, reverse
from ldmkit.samplers.ddim import DDIM
from ldmkit.samplers.ddpm import DDPM
from ldmkit.samplers.dpmpp import DPMPP2M, DPMPP2MSDE, DPMPP2S
from ldmkit.samplers.euler import Euler, EulerAncestral
from ldmkit.samplers.heun import Heun
from ldmkit.samplers.plms import PLMS
from ldmkit.samplers.unipc import UniPC
from ldmkit.testing import Gaussian, GaussianBackbone, convergence_order

DATA = Gaussian(mean=0.4, std=0.6)
DETERMINISTIC = [DDIM(), PLMS(), Euler(), Heun(), DPMPP2M(), DPMPP2S(), UniPC(), UniPC(3)]
ANCESTRAL = [DDIM(eta=1.0), DDIM(eta=0.5), DDPM(), DDPM(upper_variance=1.0), EulerAncestral()]
EVERY = [*DETERMINISTIC, *ANCESTRAL, DPMPP2MSDE(), DPMPP2MSDE(eta=0.5)]
WITHOUT_HISTORY = [DDIM(), Euler(), Heun(), DPMPP2S(), *ANCESTRAL]
ONE_OF_EACH = [*DETERMINISTIC, DDIM(eta=1.0), DDPM(), EulerAncestral(), DPMPP2MSDE()]


def start(levels, shape=(1, 1, 4, 4)):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return levels.start.alpha * DATA.mean + DATA.spread(levels.start) * x


def no_noise(like, stop):
    raise AssertionError("a deterministic sampler drew noise")


def even_times(n):
    """Even fractional times from 900 to 100: no rounding to the table, both ends away from the limits."""
    process = VP()
    return at(process, [900 - 800 * i / n for i in range(n)], landing=process.level(100.0))


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_deterministic_samplers_have_the_order_they_claim(sampler):
    """A multistep sampler of order 3 on the way up: on the way down its first steps, of order 1, cost too little."""

    def error(levels):
        x = start(levels)
        got = sampler(DATA.denoise, x, levels, no_noise)
        return float((got - DATA.flow(x, levels.start, levels.landing)).abs().max())

    def levels(n):
        return reverse(even_times(n)) if sampler.order == 3 else even_times(n)

    assert convergence_order(error, levels, (64, 128, 256, 512)) == pytest.approx(sampler.order, abs=0.15)


@pytest.mark.parametrize("make", [uniform, leading, trailing, linspace, karras])
@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_every_list_of_levels_leads_to_the_exact_solution(sampler, make):
    levels = make(VP(), 1000)
    x = start(levels)
    exact = DATA.flow(x, levels.start, levels.landing)
    torch.testing.assert_close(sampler(DATA.denoise, x, levels, no_noise), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "levels", [uniform(VP(), 7), trailing(VP(), 7), karras(EDM(), 7), linspace(RectifiedFlow(), 7)], ids=str
)
def test_ddim_is_its_definition(levels, eta):
    noise = Noise((3,))
    expected = x = start(levels)
    for now, nxt in levels.steps():
        x0 = DATA.denoise(expected, now)
        eps = (expected - now.alpha * x0) / now.sigma
        up = eta and eta * nxt.sigma * (1 - (now.alpha / nxt.alpha * nxt.sigma / now.sigma) ** 2) ** 0.5
        expected = nxt.alpha * x0 + (nxt.sigma**2 - up**2) ** 0.5 * eps
        if eta:
            expected = expected + up * noise(expected, nxt)
    torch.testing.assert_close(DDIM(eta)(DATA.denoise, x, levels, noise), expected)


def test_ancestral_ddim_and_ddpm_are_the_same_process():
    levels, noise = trailing(VP(), 50), Noise((1,))
    x = start(levels)
    torch.testing.assert_close(
        DDIM(eta=1.0)(DATA.denoise, x, levels, noise), DDPM()(DATA.denoise, x, levels, noise), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("sampler", "levels"),
    [
        *((sampler, linspace(VP(), 1000)) for sampler in ANCESTRAL),
        *((DPMPP2MSDE(eta), karras(VP(), 100)) for eta in (0.5, 1.0)),
    ],
    ids=str,
)
def test_stochastic_samplers_reproduce_mean_and_variance(sampler, levels):
    x = start(levels, (64, 1, 16, 16))
    got = sampler(DATA.denoise, x, levels, Noise(tuple(range(64))))
    standard_error = DATA.std / got.numel() ** 0.5
    assert abs(float(got.mean()) - DATA.mean) < 4 * standard_error + 1e-3
    assert float(got.std()) == pytest.approx(DATA.std, rel=0.02)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DDPM(), 1), (DDIM(eta=1.0), 1), (EulerAncestral(), 1), (DPMPP2MSDE(), 2), (DPMPP2MSDE(eta=0.5), 2)],
    ids=str,
)
def test_the_spread_of_a_stochastic_sampler_converges_with_its_order(sampler, order):
    """Without chance: on a Gaussian the result is linear in the first state and in every draw, one image for each."""

    def error(levels):
        x = torch.full((len(levels) + 2, 1, 1, 1), levels.start.alpha * DATA.mean, dtype=torch.float64)
        x[0] += DATA.spread(levels.start)
        draws = dict(zip(levels.stops[1:], torch.eye(len(levels) + 2, dtype=torch.float64)[1:], strict=False))
        got = sampler(DATA.denoise, x, levels, lambda like, stop: draws[stop].view_as(like))
        variance = float((got[:-1] - got[-1]).square().sum())
        return abs(variance**0.5 - DATA.spread(levels.landing))

    assert convergence_order(error, even_times, (64, 128, 256)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", ONE_OF_EACH, ids=str)
def test_every_prediction_gives_the_same_trajectory(sampler):
    levels = trailing(VP(), 20)
    x, results = start(levels), []
    for prediction in ("eps", "v", "x0", "flow"):
        denoiser = Denoiser(GaussianBackbone(VP(), prediction, data=DATA), VP(), prediction)
        with torch.no_grad():
            results.append(sampler(denoiser.bind(Conditioning(), levels), x, levels, Noise((5,))))
    fine = 1e-6 if isinstance(sampler, DPMPP2S) else 1e-9  # between stops times are fractions, told in float32
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=fine, atol=fine)


@pytest.mark.parametrize("sampler", ONE_OF_EACH, ids=str)
def test_moving_a_model_between_processes_does_not_change_the_trajectory(sampler):
    levels = uniform(VP(), 20)
    on_edm = at(EDM(), [-log_snr(level) / 8 for level in levels.stops[:-1]], EDM().level(-log_snr(levels.landing) / 8))
    denoiser = Denoiser(GaussianBackbone(VP(), "eps", data=DATA), VP(), "eps")
    x, draws = start(levels), torch.randn(20, 1, 1, 4, 4, dtype=torch.float64)

    def run(state, stops):
        kept = iter(draws)
        return sampler(denoiser.bind(Conditioning(), stops), state, stops, lambda like, stop: next(kept))

    with torch.no_grad():
        here, there = run(x, levels), run(x / levels.start.alpha, on_edm)
    torch.testing.assert_close(there * levels.landing.alpha, here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_a_sampler_evaluates_as_often_as_it_says(sampler):
    """One number for landing on the first level of the table, one for landing clean."""

    def evaluations(levels):
        calls = []

        def denoise(x, level):
            calls.append(level)
            return DATA.denoise(x, level)

        sampler(denoise, start(levels), levels, Noise((1,)))
        return len(calls)

    for n in (1, 2, 3, 10):
        said = {PLMS: (n + 1, n + (n > 1)), Heun: (2 * n, 2 * n - 1), DPMPP2S: (2 * n, 2 * n - 1)}
        assert (evaluations(uniform(VP(), n)), evaluations(leading(VP(), n))) == said.get(type(sampler), (n, n))


@pytest.mark.parametrize("sampler", [one for one in DETERMINISTIC if not isinstance(one, PLMS)], ids=str)
@pytest.mark.parametrize("make", [uniform, trailing, karras])
def test_a_state_put_in_at_a_stop_is_where_it_goes_on_from(sampler, make):
    """An estimate of x0 that never changes is followed exactly by all that remember estimates (PLMS: noise)."""
    levels, x0 = make(VP(), 9), torch.full((1, 1, 4, 4), 0.7, dtype=torch.float64)
    there, other = levels.stops[5], start(levels)
    got = sampler(lambda x, now: x0.clone(), other + 1, levels, no_noise, lambda x, now: other if now == there else x)
    landing = levels.landing
    expected = landing.alpha * x0 + landing.sigma * (other - there.alpha * x0) / there.sigma
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", EVERY, ids=str)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_step_onto_a_clean_level_returns_the_estimate_of_x0(sampler, n):
    levels, estimates = leading(VP(), n), []
    got = sampler(
        lambda x, now: estimates.append(DATA.denoise(x, now)) or estimates[-1], start(levels), levels, Noise((1,))
    )
    if not isinstance(sampler, PLMS):  # whose own formula combines the noise of several stops there
        torch.testing.assert_close(got, estimates[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_a_sampler_mutates_neither_its_input_nor_itself(sampler):
    levels = trailing(VP(), 5)
    x = start(levels)
    before, state = x.clone(), dict(vars(sampler))
    stops = []
    sampler(DATA.denoise, x, levels, Noise((1,)), at_stop=lambda x, now: stops.append((x, x.clone())) or x)
    assert torch.equal(x, before)
    assert dict(vars(sampler)) == state
    assert all(torch.equal(kept, copy) for kept, copy in stops), "a state handed out was overwritten later"


@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_threads_share_a_sampler(sampler):
    levels = trailing(VP(), 30)

    def run(seed):
        return sampler(DATA.denoise, start(levels) + seed, levels, Noise((seed,)))

    serial = [run(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(run, range(8)), serial, strict=True))


@pytest.mark.parametrize("sampler", WITHOUT_HISTORY, ids=str)
def test_a_slice_continues_the_trajectory_exactly(sampler):
    levels, noise = trailing(VP(), 10), Noise((4,))
    x = start(levels)
    whole = sampler(DATA.denoise, x, levels, noise)
    half = sampler(DATA.denoise, x, levels[:4], noise)
    assert torch.equal(sampler(DATA.denoise, half, levels[4:], noise), whole)


def test_ddim_climbs_back_up_the_trajectory():
    levels = even_times(400)
    x = start(levels)
    there = DDIM()(DATA.denoise, x, levels, no_noise)
    torch.testing.assert_close(DDIM()(DATA.denoise, there, reverse(levels), no_noise), x, rtol=0, atol=0.02)


@pytest.mark.parametrize("sampler", [one for one in DETERMINISTIC if not isinstance(one, PLMS)], ids=str)
def test_flow_levels_start_at_pure_noise_and_stay_finite(sampler):
    levels = linspace(RectifiedFlow(), 50)
    x = start(levels)
    got = sampler(DATA.denoise, x, levels, no_noise)
    torch.testing.assert_close(got, DATA.flow(x, levels.start, levels.landing), rtol=0, atol=0.05 / sampler.order)


def test_blending_replaces_the_state_and_keeping_replaces_the_estimate():
    levels = trailing(VP(), 20)
    known = torch.full((1, 1, 4, 4), 2.0, dtype=torch.float64)
    mask = torch.zeros_like(known)
    mask[..., 2:] = 1
    x, states = start(levels), []
    blending = in_turn(blend(known, mask, Noise((9,), "known")), lambda x, now: states.append((now, x)) or x)
    blended = DDIM()(DATA.denoise, x, levels, no_noise, blending)
    kept = DDIM()(keep_known(DATA.denoise, known, mask), x, levels, no_noise)
    now, state = states[5]
    expected = now.alpha * known + now.sigma * Noise((9,), "known")(known, now)
    torch.testing.assert_close(state[..., :2], expected[..., :2])
    torch.testing.assert_close(kept[..., :2], known[..., :2])
    free = DDIM()(DATA.denoise, x, levels, no_noise)
    torch.testing.assert_close(kept[..., 2:], free[..., 2:])
    torch.testing.assert_close(blended[..., 2:], free[..., 2:])


def test_a_mask_of_ones_is_plain_sampling():
    levels, known = trailing(VP(), 10), torch.full((1, 1, 4, 4), 2.0, dtype=torch.float64)
    x = start(levels)
    plain = DDIM()(DATA.denoise, x, levels, no_noise)
    ones = torch.ones_like(known)
    torch.testing.assert_close(
        DDIM()(DATA.denoise, x, levels, no_noise, blend(known, ones, Noise((1,), "known"))), plain
    )
    torch.testing.assert_close(DDIM()(keep_known(DATA.denoise, known, ones), x, levels, no_noise), plain)


RISING = at(VP(), [100, 200], landing=VP().level(300.0))
BACK_AND_FORTH = at(VP(), [300, 200, 300], landing=VP().level(100.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(eta=1.5), r"eta in \[0, 1\]"),
        (lambda: DDPM(upper_variance=-1), "upper_variance"),
        (lambda: EulerAncestral(eta=-0.1), r"'euler-ancestral' needs eta in \[0, 1\]"),
        (lambda: DPMPP2MSDE(eta=2), r"'dpmpp-2m-sde' needs eta in \[0, 1\]"),
        (lambda: UniPC(solver_order=4), "solver_order 2 or 3"),
        (lambda: UniPC()(DATA.denoise, start(RISING), BACK_AND_FORTH, no_noise), "back and forth"),
        (lambda: EulerAncestral()(DATA.denoise, start(RISING), RISING, no_noise), "noise falls"),
        (lambda: DPMPP2MSDE()(DATA.denoise, start(RISING), RISING, no_noise), "noise falls"),
        (lambda: DDIM(1.0)(DATA.denoise, start(RISING), RISING, no_noise), "noise falls"),
        (lambda: DDPM()(DATA.denoise, start(RISING), RISING, no_noise), "noise falls"),
        (
            lambda: PLMS()(DATA.denoise, torch.zeros(1), linspace(RectifiedFlow(), 5), no_noise),
            "cannot stop at alpha = 0",
        ),
    ],
)
def test_what_a_sampler_cannot_do_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_leaving_a_clean_level_is_refused(sampler):
    process = RectifiedFlow()
    levels = at(process, [0.0], landing=process.level(10.0))
    with pytest.raises(ValueError, match=r"clean level|sigma = 0"):
        sampler(DATA.denoise, torch.zeros(1), levels, no_noise)
