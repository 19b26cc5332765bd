"""Tasks whose inputs are numbers: depth maps and embeddings."""

import numpy as np
import pytest
import torch

import ldmkit
from ldmkit.errors import CompositionError
from ldmkit.noise import Noise
from ldmkit.tasks.depth_to_image import DepthToImage
from ldmkit.tasks.embedding_to_image import EmbeddingToImage, ImageVariation

UNET = {"channels": 3, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
UNET |= {"num_heads": 1}
CALL = {"num_inference_steps": 2, "progress": False, "output_type": "pt"}


def pipe(task, conditioner, **options):
    torch.manual_seed(0)
    model = ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel"),
        backbone=ldmkit.build("backbone", "unet", **UNET, **options),
        process=ldmkit.build("process", "vp"),
        conditioner=conditioner,
    )
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return ldmkit.pipeline(task, model.eval())


@pytest.mark.parametrize("form", [lambda d: d[0, 0].numpy(), lambda d: d[0], lambda d: d, lambda d: d[0, 0].tolist()])
def test_a_depth_map_says_how_large_the_image_is_in_any_form_and_unit(form):
    made = pipe("depth-to-image", ldmkit.build("conditioner", "depth", factor=1), concat_channels=1)
    depth = 100 * torch.rand(1, 1, 6, 10)
    images = made(depth_map=form(depth), **CALL).images
    assert images.shape == (1, 3, 6, 10)
    torch.testing.assert_close(made(depth_map=form(1000 * depth), **CALL).images, images, atol=1e-3, rtol=0)
    assert not torch.equal(made(depth_map=form(100 - depth), **CALL).images, images)


def test_an_embedding_goes_where_the_model_reads_it():
    words = ldmkit.build("conditioner", "precomputed", key="clip", slot="context", size=4)
    made = pipe("embedding-to-image", words, context_dim=4)
    assert made.task.fills == ("clip",)
    size = {"height": 8, "width": 8}
    embedding = torch.randn(2, 3, 4)
    both = made(embedding=embedding, **size, **CALL).images
    alone = made(embedding=embedding[1:], seed=1, **size, **CALL).images
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)
    assert made(embedding=np.zeros(4), **size, **CALL).images.shape == (1, 3, 8, 8)


def test_a_vector_stays_a_vector():
    vector = ldmkit.build("conditioner", "precomputed", key="e", slot="vector", size=4)
    assert pipe("embedding-to-image", vector, vector_dim=4).task.prepare({"embedding": [1, 2, 3, 4]})["e"].shape == (
        1,
        4,
    )


def test_a_variation_is_noised_by_its_seed_and_more_at_a_higher_level():
    made = pipe("image-variation", ldmkit.build("conditioner", "noised-embedding", size=4), vector_dim=8)
    call = {"image_embedding": torch.ones(4), "height": 8, "width": 8, **CALL}
    same = made(**call, seed=[3, 4]).images
    torch.testing.assert_close(same[1:], made(**call, seed=4).images, atol=1e-4, rtol=0)
    prepared = made.task.prepare({"image_embedding": torch.ones(2, 4), "noise_level": 900})
    assert prepared["image_embedding_level"].tolist() == [900, 900]
    noise = ldmkit.build("conditioner", "noised-embedding", size=4)
    one, other = (noise(made.task.noised(prepared, Noise((seed, 2)))).vector for seed in (0, 1))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    ("task", "inputs", "error", "message"),
    [
        (DepthToImage(), {}, ValueError, "needs depth_map="),
        (DepthToImage(), {"depth_map": torch.rand(1, 3, 4, 4)}, ValueError, r"\(1, 3, 4, 4\)"),
        (DepthToImage(), {"depth_map": torch.full((4, 4), float("nan"))}, ValueError, "depth_map holds values"),
        (DepthToImage(), {"depth_map": "map.png"}, TypeError, "depth_map must be"),
        (EmbeddingToImage(), {}, ValueError, "needs embedding="),
        (EmbeddingToImage(tokens=False), {"embedding": torch.rand(1, 2, 3)}, ValueError, "1 or 2 dimensions"),
        (ImageVariation(), {}, ValueError, "needs image_embedding="),
        (ImageVariation(), {"image_embedding": torch.ones(4), "noise_level": 0.5}, TypeError, "noise_level must be"),
        (ImageVariation(), {"image_embedding": torch.ones(4), "noise_level": -1}, ValueError, "at least 0"),
    ],
)
def test_wrong_numbers_are_refused_by_keyword(task, inputs, error, message):
    with pytest.raises(error, match=message):
        task.prepare(inputs)


def test_a_model_without_such_a_conditioner_is_refused():
    label = ldmkit.build("conditioner", "class-label", classes=3, width=4)
    with pytest.raises(CompositionError, match="one conditioner 'precomputed'"):
        pipe("embedding-to-image", label, context_dim=4)
    with pytest.raises(CompositionError, match="noised-embedding"):
        pipe("image-variation", label, context_dim=4)
