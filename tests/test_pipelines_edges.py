"""Where two features of a pipeline meet: parts and lists, negative prompts and other sources, tiles and inputs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import ldmkit
from ldmkit import Conditioning, NonFiniteError
from ldmkit.errors import OptionError
from ldmkit.guidance import CFG, Rescale
from ldmkit.tiling import Tiles

UNET = {"channels": 1, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
CALL = {"num_inference_steps": 3, "progress": False, "output_type": "latent"}
SIZE = {"height": 8, "width": 8}


class Words(nn.Module):
    """A prompt's context is its length, and its null that of nothing."""

    reads = ("prompt",)
    provides = {"context": 8}  # noqa: RUF012 - part of the protocol

    def forward(self, batch):
        return Conditioning(context=torch.stack([torch.full((2, 8), float(len(p))) for p in batch["prompt"]]))

    def null(self, batch):
        return self({"prompt": [""] * len(batch["prompt"])})


class Seen(nn.Module):
    """A first stage of pixels that remembers how large the images were that it encoded."""

    factor, channels, image_channels = 1, 1, 1

    def __init__(self):
        super().__init__()
        self.sizes = []

    def encode(self, image, noise=None):
        self.sizes.append(tuple(image.shape[-2:]))
        return image

    def decode(self, z):
        return z


def model(conditioner=None, stage=None, **options):
    torch.manual_seed(0)
    whole = ldmkit.LatentDiffusion(
        first_stage=stage or ldmkit.build("first-stage", "pixel", channels=1),
        backbone=ldmkit.build("backbone", "unet", **{**UNET, "num_heads": 1, **options}),
        process=ldmkit.build("process", "vp"),
        prediction="v",
        conditioner=conditioner,
    )
    with torch.no_grad():
        for parameter in whole.backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return whole.eval()


def apart(one, other):
    return float((one - other).abs().max())


@pytest.fixture
def text():
    return ldmkit.pipeline("text-to-image", model(Words(), context_dim=8))


@pytest.fixture
def plain():
    return ldmkit.pipeline("image-to-image", model())


def test_a_negative_prompt_leaves_the_other_guided_sources_null():
    """The empty prompt is this model's null, so that saying it changes nothing: the embedding stays dropped."""
    sources = {"text": Words(), "image": ldmkit.build("conditioner", "noised-embedding", size=4)}
    pipe = ldmkit.pipeline("image-variation", model(sources, context_dim=8, vector_dim=8))
    call = {"prompt": "cat", "image_embedding": 3 * torch.ones(4), **SIZE, **CALL}
    guided = pipe(guidance_scale=5.0, **call).latents
    assert apart(guided, pipe(**call).latents) > 0.1
    torch.testing.assert_close(pipe(guidance_scale=5.0, negative_prompt="", **call).latents, guided)


def test_parts_whose_scales_are_one_need_no_negative_prompt(text):
    call = {"prompt": ["a", "bcd"], "negative_prompt": "x", "guidance_scale": [2.0, 1.0], **SIZE, **CALL}
    torch.testing.assert_close(text(**call, max_batch=1).latents, text(**call).latents, atol=1e-4, rtol=0)


def test_a_guidance_holds_one_value_per_image_and_no_more(text):
    with pytest.raises(ValueError, match="3 scales for 2 images"):
        text(prompt=["a", "b"], guidance=CFG((2.0, 3.0, 4.0)), **SIZE, **CALL)


def test_what_a_callback_spoils_in_the_last_step_is_named(plain):
    def spoil(step):
        return step.latents * float("nan") if step.index == step.count - 1 else None

    call = {"image": torch.rand(1, 8, 8), "strength": 1.0, "callback_on_step_end": spoil, **CALL}
    for output in ("latent", "pt"):
        with pytest.raises(NonFiniteError, match=r"last state of images \[0\]"):
            plain(**{**call, "output_type": output})


def test_sequences_of_tokens_are_one_image():
    words = ldmkit.build("conditioner", "precomputed", key="e", slot="context", size=8)
    pipe = ldmkit.pipeline("embedding-to-image", model(words, context_dim=8))
    assert pipe(embedding=torch.randn(5, 8), **SIZE, **CALL).latents.shape[0] == 1
    assert pipe(embedding=torch.randn(2, 5, 8), **SIZE, **CALL).latents.shape[0] == 2


def test_a_prompt_beside_a_map_of_an_odd_size_is_cut_back_with_and_without_a_negative():
    call = {"prompt": "a", "segmentation": torch.randint(3, (31, 30)), "num_inference_steps": 2, "progress": False}
    torch.manual_seed(0)
    whole = ldmkit.LatentDiffusion(
        first_stage=ldmkit.build(
            "first-stage", "kl", channels=1, base_channels=32, channel_mult=[1, 1], num_res_blocks=1, image_channels=3
        ),
        backbone=ldmkit.build("backbone", "unet", **{**UNET, "num_heads": 1, "context_dim": 8, "concat_channels": 2}),
        process=ldmkit.build("process", "vp"),
        conditioner={
            "text": Words(),
            "map": ldmkit.build("conditioner", "semantic-map", classes=3, channels=2, stages=1),
        },
    ).eval()
    pipe = ldmkit.pipeline("image-to-image", whole)
    call |= {"image": torch.rand(3, 31, 30)}
    assert pipe(**call).images[0].size == (30, 31)
    assert pipe(**call, negative_prompt="b", guidance_scale=2.0).images[0].size == (30, 31)


def test_the_size_that_is_repeated_is_the_one_that_comes_out():
    whole = model(channel_mult=[1, 1])
    pipe = ldmkit.pipeline("image-to-image", whole)
    call = {"image": torch.rand(1, 7, 9), **CALL, "output_type": "pt"}
    assert pipe(**call, height=7, width=9).images.shape == (1, 1, 7, 9)
    with pytest.raises(ValueError, match="contradict the inputs, which make images of 7 x 9"):
        pipe(**call, height=8)


def test_tiles_hold_for_what_is_encoded_too():
    stage = Seen()
    whole = model(ldmkit.build("conditioner", "masked-image", channels=1), stage, concat_channels=2)
    pipe = ldmkit.pipeline("inpainting", whole)
    mask = torch.zeros(32, 32)
    mask[8:20, 8:20] = 1
    pipe(image=torch.rand(1, 32, 32), mask_image=mask, tiles=Tiles(16, 4), **{**CALL, "output_type": "pt"})
    assert set(stage.sizes) == {(16, 16)}


def test_rescale_works_by_tiles(text):
    guidance = Rescale(of=CFG(5.0), phi=0.7)
    call = {"prompt": "abc", "height": 16, "width": 16, "guidance": guidance, **CALL}
    assert text(**call, tiles=Tiles(8, 4)).latents.isfinite().all()
    torch.testing.assert_close(text(**call, tiles=Tiles(16, 4)).latents, text(**call).latents)


@dataclass
class Refusing:
    """Raises when any network is asked."""

    def __call__(self, *given):
        raise AssertionError("a network ran")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": -1}, ValueError, "a seed must lie in"),
        ({"sampler": 3}, TypeError, "is not a sampler"),
        ({"latents": torch.zeros(1, 1, 4, 4)}, ValueError, "these images need"),
        ({"levels": 5}, TypeError, "num_inference_steps="),
        ({"guidance_scale": lambda level: 2.0}, OptionError, "guidance=CFG"),
        ({"guidance_scale": None}, TypeError, "a number or a list"),
        ({"height": 8.0}, TypeError, "height must be an integer"),
        ({"num_images_per_prompt": 2.0}, TypeError, "num_images_per_prompt must be an integer"),
        ({"num_inference_steps": 2.5}, TypeError, "num_inference_steps must be an integer"),
        ({"max_batch": 1.5}, TypeError, "max_batch must be an integer"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_network_runs(text, monkeypatch, change, error, message):
    monkeypatch.setattr(Words, "forward", Refusing())
    with pytest.raises(error, match=message):
        text(**{"prompt": "a", **SIZE, **CALL, **change})


def test_numbers_of_numpy_and_torch_are_numbers(text):
    call = {"prompt": ["a", "b"], **SIZE, **CALL}
    usual = text(guidance_scale=2.0, seed=[1, 2], **call).latents
    for scale in (np.float32(2), torch.tensor(2.0), [2.0, 2.0], np.array([2.0, 2.0])):
        for seed in ([1, 2], np.array([1, 2]), torch.tensor([1, 2])):
            torch.testing.assert_close(text(guidance_scale=scale, seed=seed, **call).latents, usual)


def test_a_colour_mask_is_no_batch_of_masks():
    pipe = ldmkit.pipeline("inpainting", model())
    with pytest.raises(ValueError, match=r"mask_image has 3 planes for one image"):
        pipe(image=torch.rand(1, 8, 8), mask_image=torch.ones(3, 8, 8), **CALL)


def test_two_names_of_the_small_image_are_one_too_many():
    pipe = ldmkit.pipeline(
        "super-resolution", model(ldmkit.build("conditioner", "low-res", channels=1), concat_channels=1)
    )
    with pytest.raises(ValueError, match="two names of the small image"):
        pipe(image=torch.rand(1, 8, 8), low_res=torch.rand(1, 8, 8), **CALL)


def test_a_model_without_values_says_so():
    with torch.device("meta"):
        empty = model()
    with pytest.raises(ValueError, match="load its weights first"):
        ldmkit.pipeline("unconditional", empty)(**SIZE, **CALL)
