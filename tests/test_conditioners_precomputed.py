"""Tensors that exist already."""

import pytest
import torch

from ldmkit.conditioners import Precomputed


@pytest.mark.parametrize(("slot", "shape"), [("context", (2, 3, 5)), ("vector", (2, 5)), ("concat", (2, 5, 4, 6))])
def test_a_tensor_passes_unchanged_and_its_null_is_zeros(slot, shape):
    conditioner, value = Precomputed("clip", slot, 5), torch.randn(shape)
    assert conditioner.reads == ("clip",)
    assert conditioner({"clip": value}).filled() == {slot: value}
    assert torch.equal(conditioner.null({"clip": value}).filled()[slot], torch.zeros(shape))


@pytest.mark.parametrize(
    ("slot", "shape", "message"),
    [
        ("context", (2, 5), r"\(B, L, 5\), got \(2, 5\)"),
        ("context", (2, 3, 6), r"\(B, L, 5\), got \(2, 3, 6\)"),
        ("vector", (2, 1, 5), r"\(B, 5\)"),
        ("concat", (2, 4, 5, 5), r"\(B, 5, h, w\)"),
    ],
)
def test_another_rank_or_width_is_refused(slot, shape, message):
    with pytest.raises(ValueError, match=message):
        Precomputed("clip", slot, 5)({"clip": torch.zeros(shape)})


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"floating point, got torch\.int64"):
        Precomputed("clip", "vector", 5)({"clip": torch.zeros(2, 5, dtype=torch.int64)})


def test_a_label_points_to_the_conditioner_for_it():
    with pytest.raises(ValueError, match="'class-index'"):
        Precomputed("label", "label", 5)


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Precomputed("clip", "vector", 0)
