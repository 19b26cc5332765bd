"""The original's DDIM, PLMS, masked and ancestral trajectories, from our samplers on its stand-in network."""

import pytest
import torch
from torch import nn

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoiser
from ldmkit.guidance import CFG, NoGuidance
from ldmkit.process import VP, linspace, uniform
from ldmkit.samplers import blend
from ldmkit.samplers.ddim import DDIM
from ldmkit.samplers.ddpm import DDPM
from ldmkit.samplers.plms import PLMS
from parity.recipe_weights import arrays, index, relative_error

TOLERANCE = 1e-5


class StandIn(nn.Module):
    """The network the trajectories were recorded with; its condition is one number per sample."""

    channels = 3
    multiple = 1

    def __init__(self):
        super().__init__()
        self.accepts = {"vector": 1}

    def forward(self, x, t, context=None, context_mask=None, vector=None, label=None):
        out = 0.8 * torch.tanh(1.3 * x) + 0.1 * torch.sin(t.view(-1, 1, 1, 1) / 150) * torch.roll(x, 1, dims=-1)
        return out if vector is None else out + 0.2 * vector.view(-1, 1, 1, 1) * torch.cos(x)


def process(name):
    schedule = index()[name]["schedule"]
    return VP(steps=schedule["timesteps"], start=schedule["linear_start"], end=schedule["linear_end"])


def run(name, sampler, levels, guidance=None, at_stop=None):
    """Our trajectory on the recorded draws: (states at every stop and the landing, estimates of x0)."""
    recorded = arrays(name)
    denoiser = Denoiser(StandIn(), levels.process, "eps")
    cond, uncond = Conditioning(), None
    if "cond" in recorded:
        cond, uncond = (Conditioning(vector=recorded[key].float().view(-1, 1)) for key in ("cond", "uncond"))
    draws, states, estimates = iter(recorded["noise"]), [], []
    denoise = (guidance or NoGuidance())(lambda c: denoiser.bind(c, levels), cond, uncond, levels)

    def watched(x, level):
        estimates.append(denoise(x, level))
        return estimates[-1]

    def at(x, now):
        states.append(x)
        return x if at_stop is None else at_stop(x, now)

    with torch.no_grad():
        out = sampler(watched, recorded["x_T"], levels, lambda like, stop: next(draws), at)
    return torch.stack([*states, out]), torch.stack(estimates), recorded


@pytest.mark.parametrize(
    ("name", "steps", "sampler", "guidance"),
    [
        ("sampler_ddim_eta0_s10", 10, DDIM(), None),
        ("sampler_ddim_eta1_s20", 20, DDIM(eta=1.0), None),
        ("sampler_ddim_cfg_s10", 10, DDIM(), CFG(3.0)),
        ("sampler_plms_s20", 20, PLMS(), CFG(5.0)),
    ],
)
def test_trajectories_match_the_original(name, steps, sampler, guidance):
    states, estimates, recorded = run(name, sampler, uniform(process(name), steps), guidance)
    assert relative_error(states[-1], recorded["out"]) < TOLERANCE
    assert relative_error(states, recorded["trajectory"]) < TOLERANCE
    if not isinstance(sampler, PLMS):
        assert relative_error(estimates, recorded["pred_x0"][1:]) < TOLERANCE


def test_masked_sampling_matches_the_original():
    name = "sampler_ddim_mask_s10"
    recorded = arrays(name)
    draws = iter(recorded["q_noise"])
    at_stop = blend(recorded["x0"], 1 - recorded["mask"], lambda like, stop: next(draws))
    states, estimates, _ = run(name, DDIM(), uniform(process(name), 10), at_stop=at_stop)
    assert relative_error(states, recorded["trajectory"]) < TOLERANCE
    assert relative_error(estimates, recorded["pred_x0"][1:]) < TOLERANCE


def test_ancestral_sampling_matches_the_original():
    name = "sampler_ddpm_t100"
    states, _, recorded = run(name, DDPM(), linspace(process(name), 100))
    assert relative_error(states[-1], recorded["out"]) < TOLERANCE
    assert relative_error(states[-5:], recorded["trajectory"]) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["sampler_ddim_eta0_s10", "sampler_ddim_eta1_s20", "sampler_ddim_cfg_s10", "sampler_plms_s20"]
)
def test_levels_match_the_originals_tables(name):
    recorded, entry = arrays(name), index()[name]
    levels = uniform(process(name), entry["steps"])
    rising = list(reversed(levels.stops))
    assert [level.t for level in rising[1:]] == recorded["timesteps"].tolist()
    alphas = torch.tensor([level.alpha**2 for level in rising], dtype=torch.float64)
    assert relative_error(alphas[1:], recorded["alphas"]) < 1e-6
    assert relative_error(alphas[:-1], recorded["alphas_prev"]) < 1e-6
