"""Averages whose length is chosen afterwards: their profiles, what is reconstructed, and a run that keeps them."""

import numpy as np
import pytest
import torch
from distributed.small import Both, Small, Vectors, run, trained
from safetensors.torch import load_file, save_file
from torch import nn

from ldmkit.errors import CheckpointError
from ldmkit.training.loop import train
from ldmkit.training.power_ema import WIDEST, PowerEMA, PowerProfile, combination, gamma_of, reconstruct

T = 200
PROFILE = PowerProfile(every=2, sigma_rels=(0.1, 0.2))


def profile(sigma_rel, updates=T):
    """The weight of each of T updates in an average that ends after ``updates``."""
    edges = (np.minimum(np.arange(T + 1), updates) / updates) ** (gamma_of(sigma_rel) + 1)
    return np.diff(edges)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Snapshots of weights of which number t is 1 after update t alone: an average holds its own profile."""
    folder = tmp_path_factory.mktemp("profiles")
    linear = nn.Linear(T, 1, bias=False)
    power = PowerEMA(linear, PowerProfile(every=10))
    for t in range(T):
        with torch.no_grad():
            linear.weight.copy_(torch.eye(T)[t : t + 1])
        power.update(linear)
        if power.updates % 10 == 0:
            power.snapshot(folder)
    return folder


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, WIDEST])
def test_the_exponent_gives_the_deviation(sigma_rel):
    gamma = gamma_of(sigma_rel)
    assert (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 == pytest.approx(sigma_rel)


def test_the_widest_profile_is_the_mean():
    linear = nn.Linear(2, 2)
    power, seen = PowerEMA(linear, PowerProfile(every=1, sigma_rels=(WIDEST,))), []
    for _ in range(5):
        with torch.no_grad():
            linear.weight.normal_()
        seen.append(linear.weight.detach().clone())
        power.update(linear)
    torch.testing.assert_close(power.averages[WIDEST]["weight"], torch.stack(seen).mean(0))


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10])
@pytest.mark.parametrize("updates", [T, 150])
def test_what_was_tracked_comes_back_exactly(folder, sigma_rel, updates):
    found = reconstruct(folder, sigma_rel, updates)["weight"][0].double().numpy()
    np.testing.assert_allclose(found, profile(sigma_rel, updates), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sigma_rel", "tolerance"), [(0.07, 0.01), (0.15, 0.02), (0.2, 0.03)])
def test_what_was_not_tracked_is_near_its_profile(folder, sigma_rel, tolerance):
    found = reconstruct(folder, sigma_rel)["weight"][0].double().numpy()
    expected = profile(sigma_rel)
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
    assert np.linalg.norm(found - profile(0.1)) > 5 * tolerance * np.linalg.norm(expected)


def test_one_snapshot_of_the_average_itself_needs_no_other():
    np.testing.assert_allclose(combination([(0.05, 50), (0.1, 50), (0.1, 100)], 0.1, 100), [0, 0, 1], atol=1e-9)


def test_averages_follow_trained_weights_in_float32():
    linear = nn.Linear(2, 2).bfloat16()
    linear.bias.requires_grad_(False)
    power = PowerEMA(linear, PROFILE)
    power.update(linear)
    assert [name for name, _ in power.named()] == ["0.1/weight", "0.2/weight"]
    assert all(average.dtype == torch.float32 for _, average in power.named())
    torch.testing.assert_close(dict(power.named())["0.1/weight"], linear.weight.detach().float())


def test_a_run_keeps_snapshots_and_trains_as_without(tmp_path):
    plain = trained(tmp_path / "plain", steps=5)
    kept = trained(tmp_path / "kept", steps=5, profile=PROFILE)
    assert all(torch.equal(kept[name], value) for name, value in plain.items())
    folder = tmp_path / "kept" / "profiles" / "net"
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:08d}.safetensors" for n in (2, 4, 5)]
    small = Small()
    state = reconstruct(folder, 0.15)
    missing, unexpected = small.net.load_state_dict(state, strict=False)
    assert (set(missing), unexpected) == ({"fixed.weight", "fixed.bias", "seen"}, [])


def test_a_run_that_goes_on_keeps_the_same_bits(tmp_path):
    trained(tmp_path / "whole", profile=PROFILE)
    trained(tmp_path / "cut", steps=4, profile=PROFILE)
    trained(tmp_path / "cut", profile=PROFILE)
    whole, cut = (load_file(tmp_path / name / "profiles" / "net" / "00000006.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_a_phase_counts_its_own_updates(tmp_path):
    train(Both(), Vectors(), run(tmp_path, profile=PROFILE))
    assert sorted(path.stem for path in (tmp_path / "profiles" / "late").iterdir()) == ["00000002"]


def test_a_run_without_averages_does_not_go_on_with_them(tmp_path):
    trained(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match="another choice of what is trained"):
        trained(tmp_path, profile=PROFILE)


def test_half_precision_takes_half_and_refuses_what_it_cannot_hold(tmp_path):
    linear = nn.Linear(2, 2, bias=False)
    power = PowerEMA(linear, PowerProfile(every=1, sigma_rels=(0.1,), dtype=torch.float16))
    power.update(linear)
    power.snapshot(tmp_path)
    assert load_file(tmp_path / "00000001.safetensors")["0.1/weight"].dtype == torch.float16
    assert reconstruct(tmp_path, 0.1)["weight"].dtype == torch.float32
    with torch.no_grad():
        linear.weight.fill_(1e6)
    power.update(linear)
    with pytest.raises(ValueError, match=r"0\.1/weight does not fit into torch\.float16"):
        power.snapshot(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every": 0}, "every is a number of updates"),
        ({"every": 1, "sigma_rels": ()}, "at least one"),
        ({"every": 1, "sigma_rels": (0.1, 0.1)}, "different deviations"),
        ({"every": 1, "sigma_rels": (0.3,)}, r"sigma_rel lies in \(0, 0\.2887\], got 0\.3"),
        ({"every": 1, "dtype": torch.bfloat16}, "float32 or float16"),
    ],
)
def test_other_profiles_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        PowerProfile(**options)


def test_snapshots_that_are_none_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no trainable"):
        PowerEMA(nn.Linear(2, 2).requires_grad_(False), PROFILE)
    with pytest.raises(FileNotFoundError, match="holds no snapshots"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(ValueError, match="no snapshot after 7 updates, but after"):
        reconstruct(folder, 0.1, 7)
    save_file({"x": torch.zeros(1)}, tmp_path / "00000001.safetensors")
    with pytest.raises(CheckpointError, match="is no snapshot of a run's averages"):
        reconstruct(tmp_path, 0.1)


def test_snapshots_of_different_weights_are_refused(tmp_path):
    for n, linear in enumerate((nn.Linear(2, 2), nn.Linear(2, 2, bias=False))):
        power = PowerEMA(linear, PowerProfile(every=1, sigma_rels=(0.1,)))
        for _ in range(n + 1):
            power.update(linear)
        power.snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=r"different weights, such as \['bias'\]"):
        reconstruct(tmp_path, 0.1)
