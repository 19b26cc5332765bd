"""The original's moving average over twelve updates."""

import torch
from torch import nn

from ldmkit.training import EMA
from parity.recipe_weights import arrays, relative_error


def test_ema_matches_the_original():
    recorded = arrays("ema_default")
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(recorded["w0"])
        linear.bias.copy_(recorded["b0"])
    ema = EMA(linear)
    for i, expected in enumerate(recorded["shadow_weight"]):
        with torch.no_grad():
            linear.weight += 0.1 * (i + 1)
            linear.bias *= 0.9
        ema.update(linear)
        assert relative_error(ema.average["weight"], expected) < 1e-6
