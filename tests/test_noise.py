"""Noise per image: a function of seed, stream and level, and of nothing else."""

import pytest
import torch

from ldmkit.noise import Noise, seeds_from, tempered
from ldmkit.process import VP

NOW, NXT = VP().level(500.0), VP().level(400.0)


def test_an_image_draws_the_same_alone_and_in_any_batch():
    like = torch.empty(3, 4, 8, 8)
    together = Noise((5, 6, 7))(like, NOW)
    assert torch.equal(Noise((6,))(like[:1], NOW)[0], together[1])
    assert torch.equal(Noise((7, 5, 6))(like, NOW)[0], together[2])


def test_draws_do_not_depend_on_what_was_drawn_before():
    noise, like = Noise((1,)), torch.empty(1, 2, 4, 4)
    first = noise(like, NXT)
    noise(like, NOW)
    assert torch.equal(noise(like, NXT), first)


def test_seeds_streams_and_levels_are_independent():
    like = torch.empty(1, 4, 64, 64)
    draws = [Noise((1,))(like, NOW), Noise((1,))(like, NXT), Noise((2,))(like, NOW), Noise((1,), "start")(like, NOW)]
    flat = torch.stack([draw.flatten() for draw in draws])
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.04


def test_draws_are_standard_normal():
    draw = Noise((3,))(torch.empty(1, 1, 512, 512), NOW)
    assert abs(float(draw.mean())) < 0.01
    assert abs(float(draw.std()) - 1) < 0.01


def test_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = Noise((3,))(torch.empty(1, 1, 4, 4), NOW)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(Noise((3,))(torch.empty(1, 1, 4, 4), NOW), a)


def test_noise_takes_the_dtype_it_is_asked_for():
    assert Noise((1,))(torch.empty(1, 1, 2, 2, dtype=torch.float64), NOW).dtype == torch.float64


def test_temperature_scales_and_leaves_the_source_alone():
    kept = torch.ones(1, 1, 2, 2)
    assert tempered(lambda like, stop: kept, 0.5)(kept, NOW).max() == 0.5
    assert kept.min() == 1


def test_uniform_numbers_are_per_image():
    assert torch.equal(Noise((4, 9)).uniform()[1:], Noise((9,)).uniform())
    many = Noise(tuple(range(4000))).uniform()
    assert 0 <= float(many.min()) < float(many.max()) < 1
    assert abs(float(many.mean()) - 0.5) < 0.02


def test_one_seed_counts_up_and_a_list_is_taken_as_it_is():
    assert seeds_from(10, 3) == (10, 11, 12)
    assert seeds_from([4, 4], 2) == (4, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(()), "got none"),
        (lambda: Noise((-1,)), "2\\*\\*64"),
        (lambda: Noise((1,))(torch.empty(2, 1, 1, 1), NOW), "one seed an image"),
        (lambda: seeds_from([1], 2), "2 seeds, got 1"),
        (lambda: tempered(Noise((1,)), -1), "at least 0"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
