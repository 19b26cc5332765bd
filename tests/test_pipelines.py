"""The object a user calls: keywords, inputs and outputs."""

import numpy as np
import pytest
import torch
from PIL import Image

import ldmkit
from ldmkit.errors import CompositionError, OptionError
from ldmkit.guidance import CFG
from ldmkit.model import compose
from ldmkit.parts import Part, Recipe, Source
from ldmkit.pipelines import as_images
from ldmkit.samplers.ddim import DDIM

UNET = {"channels": 1, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
UNET |= {"num_heads": 1}
CLASSES = {"class": Source(Part("class-label", {"classes": 3, "width": 8}))}


def model(sources=None):
    extra = {"context_dim": 8, "attention_resolutions": [1]} if sources else {}
    return compose(
        Recipe(Part("pixel", {"channels": 1}), Part("unet", {**UNET, **extra}), Part("vp", {}), "v", sources or {})
    ).eval()


@pytest.fixture
def pipe():
    return ldmkit.pipeline("class-conditional", model(CLASSES))


def test_images_come_as_asked(pipe):
    call = {"label": [0, 2], "height": 8, "width": 12, "num_inference_steps": 2}
    assert [image.size for image in pipe(**call).images] == [(12, 8), (12, 8)]
    assert isinstance(pipe(**call).images[0], Image.Image)
    assert pipe(**call, output_type="np").images.shape == (2, 8, 12, 1)
    assert pipe(**call, output_type="pt").images.shape == (2, 1, 8, 12)
    latent = pipe(**call, output_type="latent")
    assert torch.equal(latent.images, latent.latents)
    assert len(latent.levels) == 2


def test_a_pipeline_and_the_model_agree(pipe):
    out = pipe(label=1, height=8, width=8, num_inference_steps=3, seed=5, guidance_scale=2.0, output_type="latent")
    direct = pipe.model.sample({"label": torch.tensor([1])}, size=(8, 8), seed=5, levels=3, guidance=CFG(2.0))
    assert torch.equal(out.latents, direct)


def test_a_sampler_is_a_name_or_an_object(pipe):
    call = {"label": 1, "height": 8, "width": 8, "num_inference_steps": 3, "output_type": "latent"}
    named = pipe(**call, sampler="ddim", eta=0.5).latents
    assert torch.equal(named, pipe(**call, sampler=DDIM(eta=0.5)).latents)
    assert pipe(**call, sampler="plms").latents.shape == (1, 1, 8, 8)


def test_a_pipeline_opens_a_file(tmp_path):
    model().save(tmp_path / "m.safetensors")
    pipe = ldmkit.pipeline("unconditional", tmp_path / "m.safetensors")
    assert len(pipe(height=8, width=8, num_inference_steps=1, num_images=3).images) == 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lable": 1}, OptionError, r"unknown keyword 'lable'.*label"),
        ({"hieght": 1}, OptionError, r"unknown keyword 'hieght'.*height"),
        ({"sampler": "plms", "eta": 0.5}, OptionError, "eta.*'plms'"),
        ({"sampler": DDIM(), "eta": 0.5}, OptionError, "build the sampler with the eta"),
        ({"guidance": CFG(2.0), "guidance_scale": 3.0}, OptionError, "one of the two"),
        ({"label": None}, ValueError, "needs label="),
        ({"label": []}, ValueError, "one class index or a list"),
        ({"label": [0.5]}, TypeError, "integers"),
        ({"label": 3}, ValueError, "3"),
        ({"output_type": "jpg"}, ValueError, "'pil', 'np', 'pt' or 'latent'"),
        ({"height": 0}, ValueError, "multiples"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(pipe, change, error, message):
    with pytest.raises(error, match=message):
        pipe(**{"label": 1, "height": 8, "width": 8, "num_inference_steps": 1, **change})


def test_a_task_that_does_not_belong_to_the_model_is_refused():
    with pytest.raises(CompositionError, match="reads 'label', which task 'unconditional' does not fill"):
        ldmkit.pipeline("unconditional", model(CLASSES))
    with pytest.raises(CompositionError, match="fills 'label', which no conditioner of the model reads"):
        ldmkit.pipeline("class-conditional", model())


def test_values_that_are_not_finite_are_named_and_not_made_black():
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"images \[1\]"):
        as_images(x, "pil")


def test_images_are_clamped_and_rounded():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5)
    assert np.asarray(as_images(x, "pil")[0]).tolist() == [[0, 0, 128, 255, 255]]
