"""The original's training losses, from our objective on its stand-in network."""

import pytest
import torch

from ldmkit.denoiser import DenoisingLoss, elbo_weights
from ldmkit.process import VP
from parity.recipe_weights import arrays, index, relative_error
from parity.test_samplers import StandIn


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_losses_match_the_original(norm):
    recorded, entry = arrays(f"loss_{norm}"), index()[f"loss_{norm}"]
    process = VP(start=entry["schedule"]["linear_start"], end=entry["schedule"]["linear_end"])
    x0, eps, t = recorded["x0"], recorded["noise"], recorded["t"].long()
    level = process.level(t)
    with torch.no_grad():
        out = StandIn()(level.alpha * x0 + level.sigma * eps, t)
    elbo = elbo_weights(process, "eps").float()[t]
    objective = DenoisingLoss(norm, entry["l_simple_weight"], entry["original_elbo_weight"], times=1000)
    objective.log_variance.copy_(torch.linspace(-0.5, 0.5, 1000))
    distance = objective.distance(out, eps)
    assert relative_error(objective(out, eps, t, elbo).mean(), recorded["total"]) < 1e-5
    assert relative_error(distance.mean(), recorded["loss_simple"]) < 1e-5
    assert relative_error((elbo * distance).mean(), recorded["loss_vlb"]) < 1e-5
