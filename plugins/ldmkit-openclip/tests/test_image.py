"""OpenCLIP's image tower: every output equals the published model's."""

import open_clip
import pytest
import torch
from conftest import TINY
from torch.nn import functional as F

from ldmkit_openclip.image import OpenClipImage
from ldmkit_openclip.pixels import statistics


@pytest.fixture
def image():
    return torch.rand(2, 3, 20, 28) * 2 - 1


@pytest.fixture
def pixels(image):
    """CLIP's own preprocessing, written independently."""
    x = F.interpolate((image + 1) / 2, size=(16, 16), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    return (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def test_the_outputs_are_the_published_models(image, pixels, clip, weights):
    def given(**options):
        return OpenClipImage(TINY, source=weights, **options)({"image": image})

    near = {"atol": 1e-5, "rtol": 1e-4}
    projected = clip.encode_image(pixels)
    torch.testing.assert_close(given(vector="projected").vector, projected, **near)
    torch.testing.assert_close(given(context="embedding").context, F.normalize(projected, dim=-1)[:, None], **near)
    both = given(context="penultimate", vector="projected")
    torch.testing.assert_close(both.vector, projected, **near)
    grid = clip.visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([clip.visual.class_embedding.expand(2, 1, -1), grid], dim=1) + clip.visual.positional_embedding
    x = clip.visual.ln_pre(x)
    for block in clip.visual.transformer.resblocks[:-1]:
        x = block(x)
    torch.testing.assert_close(both.context, x, **near)


@pytest.mark.parametrize(
    ("context", "vector"),
    [("penultimate", None), ("penultimate", "projected"), ("embedding", None), (None, "projected")],
)
def test_the_null_is_zeros_of_the_same_shape(context, vector, image):
    tower = OpenClipImage(TINY, context=context, vector=vector)
    given, null = tower({"image": image}).filled(), tower.null({"image": image}).filled()
    assert {slot: value.shape for slot, value in null.items()} == {slot: value.shape for slot, value in given.items()}
    assert all(not value.any() for value in null.values())
    assert {slot: value.shape[-1] for slot, value in given.items()} == tower.provides


@pytest.mark.parametrize(("context", "vector"), [("penultimate", None), ("embedding", None), (None, "projected")])
def test_a_trained_tower_trains_every_parameter_that_asks_for_it(context, vector, image):
    tower = OpenClipImage(TINY, context=context, vector=vector, frozen=False)
    sum(value.square().sum() for value in tower({"image": image}).filled().values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in tower.parameters())


def test_it_stays_frozen_and_in_eval_mode():
    tower = OpenClipImage(TINY, vector="projected").train()
    assert not any(p.requires_grad for p in tower.parameters())
    assert not any(module.training for module in tower.modules())


def test_towers_that_are_no_vision_transformer_give_vectors(image):
    resnet = {**TINY, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}}
    assert OpenClipImage(resnet, vector="projected")({"image": image}).vector.shape == (2, 24)
    with pytest.raises(ValueError, match="has no class token and patches"):
        OpenClipImage(resnet, context="penultimate")


def test_images_are_normalised_as_given_else_as_recorded_else_as_openais():
    openai = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    recorded = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    assert statistics(None, None, {}) == openai
    assert statistics(None, None, recorded) == (recorded["mean"], recorded["std"])
    assert statistics((0.1, 0.2, 0.3), None, recorded) == ((0.1, 0.2, 0.3), recorded["std"])


def test_images_of_another_shape_or_type_are_refused(image):
    tower = OpenClipImage(TINY, vector="projected")
    for wrong in (image[0], image[:, :1], (image * 127).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"conditioner 'openclip-image' reads batch\['image'\]"):
            tower({"image": wrong})
