"""Embeddings with noise of a known level."""

import pytest
import torch

from ldmkit.backbones.layers import timestep_embedding
from ldmkit.conditioners.noised_embedding import NoisedEmbedding, waves
from ldmkit.process import VP

E = 6
MEAN, STD = [0.5, -1.0, 2.0, 0.0, 1.0, -2.0], [2.0, 0.5, 1.0, 3.0, 1.0, 0.25]


def batch(levels=(0, 700, 999)):
    count = len(levels)
    return {
        "image_embedding": torch.randn(count, E),
        "image_embedding_level": torch.tensor(levels),
        "image_embedding_noise": torch.randn(count, E),
    }


def test_the_level_is_told_as_backbones_are_told_the_time():
    given = batch()
    vector = NoisedEmbedding(E)(given).vector
    assert vector.shape == (3, 2 * E)
    assert torch.equal(vector[:, E:], timestep_embedding(given["image_embedding_level"], E))
    assert torch.equal(waves(torch.tensor([3]), 4), timestep_embedding(torch.tensor([3]), 4))


def test_noise_is_added_between_normalising_and_its_inverse():
    given, process = batch(), VP("cosine")
    noised = NoisedEmbedding(E, mean=MEAN, std=STD)(given).vector[:, :E]
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    for image, k in enumerate((0, 700, 999)):
        level = process.level(k)
        normal = (given["image_embedding"][image] - mean) / std
        expected = (level.alpha * normal + level.sigma * given["image_embedding_noise"][image]) * std + mean
        assert torch.allclose(noised[image], expected, atol=1e-5)


def test_the_last_level_leaves_nothing_of_the_embedding():
    given = batch((999,) * 3)
    other = {**given, "image_embedding": torch.randn(3, E)}
    conditioner = NoisedEmbedding(E, mean=MEAN, std=STD)
    assert torch.allclose(conditioner(given).vector, conditioner(other).vector, atol=1e-3)


def test_without_level_and_noise_the_embedding_is_told_at_level_0():
    given = batch()["image_embedding"]
    vector = NoisedEmbedding(E)({"image_embedding": given}).vector
    still = {"image_embedding_level": torch.zeros(3, dtype=torch.int64), "image_embedding_noise": torch.zeros(3, E)}
    assert torch.equal(vector, NoisedEmbedding(E)({"image_embedding": given, **still}).vector)
    assert torch.allclose(vector[:, :E], given, atol=1e-3)


def test_the_null_is_zeros_level_included():
    assert torch.equal(NoisedEmbedding(E).null(batch()).vector, torch.zeros(3, 2 * E))


def test_it_has_no_tensors():
    assert not NoisedEmbedding(E, mean=MEAN, std=STD).state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_embedding": torch.zeros(3, E + 1)}, r"\(B, 6\), got \(3, 7\)"),
        ({"image_embedding_level": torch.tensor([0, 1, 1000])}, r"in \[0, 999\]"),
        ({"image_embedding_level": torch.tensor([0])}, r"\(3,\), got \(1,\)"),
        ({"image_embedding_level": torch.zeros(3)}, "as integers"),
        ({"image_embedding_noise": torch.zeros(1, E)}, r"\(3, 6\), got \(1, 6\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NoisedEmbedding(E)({**batch(), **change})


def test_a_level_without_noise_is_refused():
    given = batch()
    del given["image_embedding_noise"]
    with pytest.raises(ValueError, match="no batch\\['image_embedding_noise'\\]: give standard normal noise"):
        NoisedEmbedding(E)(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5}, "even size"),
        ({"size": 0}, "at least 2"),
        ({"size": 2, "levels": 1}, "at least 2 levels"),
        ({"size": 2, "mean": [0.0]}, "2 numbers as mean, got 1"),
        ({"size": 2, "std": [1.0, 0.0]}, "positive standard deviations"),
    ],
)
def test_options_that_make_no_conditioner_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NoisedEmbedding(**options)
