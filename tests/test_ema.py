"""The moving average: its fixed point, its border cases, and that a swap leaves no trace."""

import pytest
import torch
from torch import nn

from ldmkit.training import EMA


def test_constant_weights_are_a_fixed_point():
    linear = nn.Linear(3, 2)
    ema = EMA(linear)
    for _ in range(5):
        ema.update(linear)
    torch.testing.assert_close(ema.average["weight"], linear.weight.detach())


def test_a_swap_leaves_no_trace():
    linear = nn.Linear(3, 2)
    ema = EMA(linear)
    with torch.no_grad():
        linear.weight += 1
    before = linear.weight.detach().clone()
    with ema.swapped(linear):
        torch.testing.assert_close(linear.weight.detach(), before - 1)
    assert torch.equal(linear.weight.detach(), before)


def test_a_swap_ends_when_the_block_raises():
    linear = nn.Linear(3, 2)
    ema = EMA(linear)
    with torch.no_grad():
        linear.weight += 1
    before = linear.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), ema.swapped(linear):
        raise KeyboardInterrupt
    assert torch.equal(linear.weight.detach(), before)


def test_averages_are_float32_for_low_precision_weights():
    linear = nn.Linear(3, 2).bfloat16()
    ema = EMA(linear)
    ema.update(linear)
    assert ema.average["weight"].dtype == torch.float32


def test_a_resumed_average_goes_on_exactly():
    linear = nn.Linear(3, 2)
    a, b = EMA(linear), EMA(linear)
    for _ in range(3):
        with torch.no_grad():
            linear.weight += 0.5
        a.update(linear)
    b.load_state_dict(a.state_dict())
    with torch.no_grad():
        linear.weight += 0.5
    a.update(linear)
    b.update(linear)
    assert torch.equal(a.average["weight"], b.average["weight"])


def test_frozen_parameters_are_left_out():
    linear = nn.Linear(3, 2)
    linear.bias.requires_grad_(False)
    assert set(EMA(linear).average) == {"weight"}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        EMA(nn.Linear(2, 2), decay=1.5)
    with pytest.raises(ValueError, match="no trainable"):
        EMA(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="other parameters"):
        EMA(nn.Linear(2, 2)).load_state_dict(EMA(nn.Conv1d(2, 2, 1, bias=False)).state_dict())
