"""Processes and level lists: identities, inverses, counts and landings."""

import itertools
import math

import pytest
import torch

from ldmkit.process import (
    EDM,
    VP,
    Level,
    Levels,
    RectifiedFlow,
    at,
    karras,
    leading,
    linspace,
    log_snr,
    trailing,
    uniform,
)

PROCESSES = [
    VP(),
    VP("linear", start=1e-4, end=2e-2),
    VP("cosine"),
    VP("sqrt"),
    VP(zero_terminal_snr=True),
]
PROCESSES += [RectifiedFlow(), EDM()]
TABLES = [p for p in PROCESSES if p.table is not None]


@pytest.mark.parametrize("process", TABLES, ids=str)
def test_vp_preserves_variance_at_whole_and_fractional_times(process):
    for t in (0, 1, 3.25, 500, 998.5, 999):
        level = process.level(t)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_noise_grows_with_time(process):
    grid = torch.linspace(process.t_min, process.t_max, 400, dtype=torch.float64).tolist()
    snr = [log_snr(process.level(t)) for t in grid]
    assert all(a > b for a, b in itertools.pairwise(snr))


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_time_is_the_inverse_of_log_snr(process):
    for share in (0.0, 0.1, 0.37, 0.5, 0.93):
        t = process.t_min + share * (process.t_max - process.t_min)
        if math.isfinite(log_snr(process.level(t))):
            assert process.time(log_snr(process.level(t))) == pytest.approx(t, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_time_is_clamped_to_the_process(process):
    assert process.time(math.inf) == process.t_min
    assert process.time(-math.inf) == process.t_max


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_levels_per_sample_equal_levels_for_all(process):
    t = process.draw(torch.tensor([0.01, 0.4, 0.77, 0.999]))
    level = process.level(t)
    assert level.alpha.shape == level.sigma.shape == (4, 1, 1, 1)
    for i, value in enumerate(t.tolist()):
        one = process.level(value)
        assert float(level.alpha[i]) == pytest.approx(one.alpha, abs=1e-6)
        assert float(level.sigma[i]) == pytest.approx(one.sigma, rel=1e-5, abs=1e-6)


def test_fractional_times_per_sample_are_interpolated_like_floats():
    t = torch.tensor([0.5, 10.25, 998.75])
    level = VP().level(t)
    expected = [VP().level(float(value)).sigma for value in t]
    torch.testing.assert_close(level.sigma.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-7)


def test_the_originals_linear_is_linear_in_the_root_of_beta():
    root = VP("scaled-linear").beta.sqrt()
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(999), rtol=1e-6, atol=1e-12)
    beta = VP("linear").beta
    torch.testing.assert_close(beta.diff(), beta.diff()[:1].expand(999), rtol=1e-6, atol=1e-12)


def test_published_constants_of_the_schedules():
    assert float(VP(start=0.0015, end=0.0195).alpha_bar[999]) == pytest.approx(1.4230e-4, rel=1e-4)
    assert float(VP(start=0.00085, end=0.012).alpha_bar[499]) == pytest.approx(0.27767, rel=1e-4)
    assert float(VP("linear", start=1e-4, end=2e-2).alpha_bar[999]) == pytest.approx(4.0358e-5, rel=1e-4)


def test_zero_terminal_snr_keeps_the_first_level_and_ends_in_noise():
    plain, zero = VP(), VP(zero_terminal_snr=True)
    assert zero.level(999.0).alpha == 0
    assert zero.level(0.0).alpha == pytest.approx(plain.level(0.0).alpha, abs=1e-12)


@pytest.mark.parametrize("n", [*range(1, 60), 250, 333, 499, 500, 501, 750, 998, 999, 1000])
@pytest.mark.parametrize("make", [uniform, leading, trailing, linspace, karras])
def test_every_count_gives_exactly_that_many_falling_steps(make, n):
    levels = make(VP(), n)
    assert len(levels) == n == len(list(levels.steps()))
    assert levels.falling


@pytest.mark.parametrize("n", [1, 2, 3, 27, 60, 999, 1000])
@pytest.mark.parametrize("make", [uniform, leading, trailing, linspace, karras])
@pytest.mark.parametrize("process", TABLES, ids=str)
def test_every_table_gives_exact_counts(process, make, n):
    if make is karras and process.zero_terminal_snr:
        with pytest.raises(ValueError, match="use trailing or linspace"):
            make(process, n)
        return
    levels = make(process, n)
    assert len(levels) == n
    assert levels.falling


@pytest.mark.parametrize("n", [1, 2, 3, 27, 60, 100])
@pytest.mark.parametrize("process", [RectifiedFlow(), EDM()], ids=str)
def test_continuous_processes_give_exact_counts_too(process, n):
    levels = process.levels(n)
    assert len(levels) == n
    assert levels.falling


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500])
def test_uniform_equals_the_original_wherever_the_original_gives_the_count(n):
    theirs = [t + 1 for t in range(0, 1000, 1000 // n)][::-1]
    assert [level.t for level in uniform(VP(), n).stops[:-1]] == theirs


def test_uniform_lands_on_index_zero_of_the_table_and_not_on_the_clean_level():
    levels = uniform(VP(), 50)
    assert [level.t for level in levels.stops][:2] == [981, 961]
    assert levels.landing == VP().level(0.0)
    assert levels.landing.sigma == pytest.approx(0.038730, rel=1e-4)


def test_explicit_landing_is_where_it_ends():
    process = VP()
    for make in (uniform, leading, trailing, linspace, karras):
        assert make(process, 10, landing=process.clean).landing == Level(0.0, 1.0, 0.0)


def test_explicit_indices_give_the_originals_thirteen_stops_for_twelve():
    theirs = [t + 1 for t in range(0, 1000, 1000 // 12)][::-1]
    levels = at(VP(), theirs)
    assert len(levels) == 13
    assert [level.t for level in levels.stops] == [*theirs, 0]


def test_trailing_starts_at_the_noisiest_level_and_leading_does_not():
    assert trailing(VP(), 10).start.t == 999
    assert leading(VP(), 10).start.t == 900
    assert linspace(VP(), 10).start.t == 999


def test_karras_levels_follow_their_formula():
    process = EDM()
    levels = karras(process, 5)
    ratios = [level.sigma for level in levels.stops[:-1]]
    roots = [ratio ** (1 / 7) for ratio in ratios]
    assert ratios[0] == pytest.approx(80)
    assert ratios[-1] == pytest.approx(0.002)
    steps = [a - b for a, b in itertools.pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * 4)


def test_between_is_even_in_log_snr():
    levels = uniform(VP(), 10)
    now, nxt = levels.stops[3], levels.stops[4]
    middle = levels.between(now, nxt, 0.5)
    assert log_snr(middle) == pytest.approx((log_snr(now) + log_snr(nxt)) / 2, abs=1e-3)
    assert nxt.t < middle.t < now.t


def test_between_refuses_an_infinite_end():
    levels = linspace(RectifiedFlow(), 4)
    with pytest.raises(ValueError, match="infinite"):
        levels.between(levels.stops[3], levels.stops[4], 0.5)


def test_a_slice_of_levels_is_the_rest_of_the_trajectory():
    levels = uniform(VP(), 10)
    tail = levels[4:]
    assert tail.stops == levels.stops[4:]
    assert len(levels[:4]) + len(tail) == 10
    assert levels[:4].landing == tail.start


def test_edm_with_v_is_edms_preconditioning():
    from ldmkit.denoiser import PREDICTIONS

    level = EDM().level(math.log(3.0) / 4)
    a, b = PREDICTIONS["v"].x0(level)
    assert a == pytest.approx(1 / (1 + 3.0**2))
    assert b == pytest.approx(-3.0 / math.sqrt(1 + 3.0**2))
    assert EDM().input_scale(level) == pytest.approx(1 / math.sqrt(1 + 3.0**2))


def test_draws_cover_the_training_times():
    u = torch.rand(20000, generator=torch.Generator().manual_seed(1))
    t = VP(steps=10).draw(u)
    assert torch.bincount(t, minlength=10).min() > 1800
    assert t.max() == 9
    sigma = (4 * EDM().draw(u)).double()
    assert float(sigma.mean()) == pytest.approx(-1.2, abs=0.05)
    assert float(sigma.std()) == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(VP(), 0), "at least 1 step"),
        (lambda: uniform(VP(), 1001), "at most 1000"),
        (lambda: uniform(RectifiedFlow(), 10), "use trailing"),
        (lambda: karras(RectifiedFlow(), 10), "use trailing"),
        (lambda: karras(VP(), 10, rho=0), "rho"),
        (lambda: VP("liner"), "scaled-linear"),
        (lambda: VP("cosine", start=0.1), "leave them out"),
        (lambda: VP(start=0.0), "0 < start < 1"),
        (lambda: VP(steps=1), "at least 2"),
        (lambda: VP().level(1000.0), "0 to 999"),
        (lambda: RectifiedFlow().level(-1.0), "0 to 1000"),
        (lambda: RectifiedFlow(0), "steps >= 1"),
        (lambda: EDM(sigma_min=2, sigma_max=1), "sigma_min < sigma_max"),
        (lambda: EDM(log_std=0), "log_std"),
        (lambda: Levels(VP(), (VP().clean,)), "a stop and a landing"),
        (lambda: at(VP(), [10, 10, 5]), "go nowhere"),
        (lambda: uniform(VP(), 10)[::2], "every step"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
