"""The original's schedule buffers, from our tables."""

import pytest
import torch

from ldmkit.denoiser import elbo_weights
from ldmkit.process import VP
from parity.recipe_weights import arrays, relative_error

PROCESSES = {
    "schedule_linear": VP("scaled-linear", start=0.0015, end=0.0195),
    "schedule_cosine": VP("cosine"),
    "schedule_sqrt_linear": VP("linear", start=0.0015, end=0.0155),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_schedules_match_the_original(name):
    process, recorded = PROCESSES[name], arrays(name)
    beta, alpha_bar = process.beta, process.alpha_bar
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    posterior = beta * (1 - before) / (1 - alpha_bar)
    ours = {
        "betas": beta,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alpha_bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / alpha_bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alpha_bar - 1).sqrt(),
        "posterior_variance": posterior,
        "posterior_log_variance_clipped": posterior.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - alpha_bar),
        "posterior_mean_coef2": (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
        "lvlb_weights": elbo_weights(process, "eps"),
    }
    assert ours.keys() == recorded.keys()
    for key, value in ours.items():
        tolerance = 1e-5 if key == "lvlb_weights" else 1e-6  # the original forms these from its float32 buffers
        assert relative_error(value, recorded[key]) < tolerance, key


@pytest.mark.parametrize("name", PROCESSES)
def test_every_level_matches_the_original(name):
    process, recorded = PROCESSES[name], arrays(name)
    levels = [process.level(float(t)) for t in range(1000)]
    alphas, sigmas = torch.tensor([[level.alpha, level.sigma] for level in levels], dtype=torch.float64).T
    assert relative_error(alphas, recorded["sqrt_alphas_cumprod"]) < 1e-6
    assert relative_error(sigmas, recorded["sqrt_one_minus_alphas_cumprod"]) < 1e-6
