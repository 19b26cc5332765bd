"""The object a user calls: keywords, inputs and outputs, and how it behaves in a program."""

import gc
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ldmkit
from ldmkit import Conditioning, NonFiniteError
from ldmkit.calls import StopSampling
from ldmkit.errors import CompositionError, OptionError
from ldmkit.guidance import CFG
from ldmkit.model import compose
from ldmkit.parts import Part, Recipe, Source
from ldmkit.pipelines import as_images
from ldmkit.samplers.ddim import DDIM

UNET = {"channels": 1, "model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
UNET |= {"num_heads": 1}
CLASSES = {"class": Source(Part("class-label", {"classes": 3, "width": 8}))}
SMALL = {"height": 8, "width": 8, "num_inference_steps": 3, "progress": False, "output_type": "latent"}


def model(sources=None):
    extra = {"context_dim": 8, "attention_resolutions": [1]} if sources else {}
    made = compose(
        Recipe(Part("pixel", {"channels": 1}), Part("unet", {**UNET, **extra}), Part("vp", {}), "v", sources or {})
    ).eval()
    with torch.no_grad():  # fresh networks end in zeros, which would hide what they are told
        for parameter in made.backbone.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return made


@pytest.fixture
def pipe():
    return ldmkit.pipeline("class-conditional", model(CLASSES))


@dataclass(frozen=True)
class Spoiled:
    """Guidance that does something to the estimate, to see what the pipeline makes of it."""

    spoil: object
    needs_uncond = False
    needs_grad = False

    def __call__(self, bind, cond, uncond, levels):
        denoise = bind(cond)
        return lambda x, level: self.spoil(denoise(x, level), level)


def test_images_come_as_asked(pipe):
    call = {"label": [0, 2], "height": 8, "width": 12, "num_inference_steps": 2, "progress": False}
    assert [image.size for image in pipe(**call).images] == [(12, 8), (12, 8)]
    assert isinstance(pipe(**call).images[0], Image.Image)
    assert pipe(**call, output_type="np").images.shape == (2, 8, 12, 1)
    assert pipe(**call, output_type="pt").images.shape == (2, 1, 8, 12)
    latent = pipe(**call, output_type="latent")
    assert torch.equal(latent.images, latent.latents)
    assert len(latent.levels) == 2
    assert latent.seeds == (0, 1)


def test_a_pipeline_and_the_model_agree(pipe):
    out = pipe(label=1, seed=5, guidance_scale=2.0, **SMALL)
    direct = pipe.model.sample({"label": torch.tensor([1])}, size=(8, 8), seed=5, levels=3, guidance=CFG(2.0))
    assert torch.equal(out.latents, direct)


def test_a_sampler_is_a_name_or_an_object(pipe):
    named = pipe(label=1, sampler="ddim", eta=0.5, **SMALL).latents
    assert torch.equal(named, pipe(label=1, sampler=DDIM(eta=0.5), **SMALL).latents)
    assert pipe(label=1, sampler="plms", **SMALL).latents.shape == (1, 1, 8, 8)


def test_a_pipeline_opens_a_file(tmp_path):
    model().save(tmp_path / "m.safetensors")
    pipe = ldmkit.pipeline("unconditional", tmp_path / "m.safetensors")
    assert len(pipe(**SMALL, num_images_per_prompt=3).images) == 3


def test_several_images_of_an_input_are_what_its_seeds_make(pipe):
    out = pipe(label=[0, 2], num_images_per_prompt=2, seed=[4, 5, 6, 7], **SMALL).latents
    for i, (label, seed) in enumerate([(0, 4), (0, 5), (2, 6), (2, 7)]):
        torch.testing.assert_close(out[i : i + 1], pipe(label=label, seed=seed, **SMALL).latents, atol=1e-4, rtol=0)


def test_several_seeds_of_one_input_make_several_images(pipe):
    out = pipe(label=1, seed=[3, 9], **SMALL)
    assert out.seeds == (3, 9)
    assert out.latents.shape[0] == 2


def test_a_scale_belongs_to_its_input(pipe):
    both = pipe(label=[0, 1], guidance_scale=[1.5, 4.0], num_images_per_prompt=2, **SMALL).latents
    for i, (label, scale) in enumerate([(0, 1.5), (0, 1.5), (1, 4.0), (1, 4.0)]):
        alone = pipe(label=label, guidance_scale=scale, seed=i, **SMALL).latents
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-4, rtol=0)


def test_a_generator_draws_the_seeds(pipe):
    def seeds(generator):
        return pipe(label=[0, 1], generator=generator, **SMALL).seeds

    one = seeds(torch.Generator().manual_seed(3))
    assert one == seeds(torch.Generator().manual_seed(3))
    assert one != seeds(torch.Generator().manual_seed(4))
    assert len(set(one)) == 2
    each = [torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)]
    assert seeds(each) == (one[0], one[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lable": 1}, OptionError, r"unknown keyword 'lable'.*label"),
        ({"hieght": 1}, OptionError, r"unknown keyword 'hieght'.*height"),
        ({"sampler": "plms", "eta": 0.5}, OptionError, "eta.*'plms'"),
        ({"sampler": DDIM(), "eta": 0.5}, OptionError, "build the sampler with the eta"),
        ({"guidance": CFG(2.0), "guidance_scale": 3.0}, OptionError, "one of the two"),
        ({"seed": 1, "generator": torch.Generator()}, OptionError, "one of the two"),
        ({"inversion": "ddim"}, OptionError, "starts from none"),
        ({"label": None}, ValueError, "needs label="),
        ({"label": []}, ValueError, "label"),
        ({"label": [0.5]}, TypeError, "integers"),
        ({"label": 3}, ValueError, "3"),
        ({"output_type": "jpg"}, ValueError, "'pil', 'np', 'pt', 'latent'"),
        ({"height": 0}, ValueError, "multiples"),
        ({"height": None}, ValueError, "height= and width= are needed"),
        ({"num_images_per_prompt": 0}, ValueError, "at least 1"),
        ({"max_batch": 0}, ValueError, "at least 1"),
        ({"previews": 0}, ValueError, "at least 1"),
        ({"label": [0, 1], "guidance_scale": [1.0, 2.0, 3.0]}, ValueError, "3 entries for 2 inputs"),
        ({"label": [0, 1], "seed": [1, 2, 3]}, ValueError, "2 images need 2 seeds"),
        ({"label": [0, 1], "latents": torch.zeros(1, 1, 8, 8)}, ValueError, "1 states for 2 images"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(pipe, change, error, message):
    with pytest.raises(error, match=message):
        pipe(**{**SMALL, "label": 1, **change})


def test_a_task_that_does_not_belong_to_the_model_is_refused():
    with pytest.raises(CompositionError, match="reads 'label', which task 'unconditional' does not fill"):
        ldmkit.pipeline("unconditional", model(CLASSES))
    with pytest.raises(CompositionError, match="fills 'label', which no conditioner of the model reads"):
        ldmkit.pipeline("class-conditional", model())
    with pytest.raises(TypeError, match="not a task"):
        ldmkit.pipeline(ldmkit.build("sampler", "ddim"), model())


def test_images_are_rounded():
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert np.asarray(as_images(x, "pil")[0]).tolist() == [[0, 128, 255]]


def test_pixels_are_clamped_and_whole_in_range(pipe):
    bright = Spoiled(lambda x0, level: x0 * 0 + 9)
    images = pipe(label=1, guidance=bright, **{**SMALL, "output_type": "pt"}).images
    assert images.aminmax() == (1.0, 1.0)


def test_values_that_are_not_finite_are_named_by_step_and_image(pipe):
    steps = pipe.model.process.levels(3).stops

    def spoil(x0, level):
        return x0.index_fill(0, torch.tensor([1]), float("nan")) if level == steps[2] else x0

    with pytest.raises(NonFiniteError, match=r"image 1 from step 2, of 3"):
        pipe(label=[0, 1, 2], guidance=Spoiled(spoil), **SMALL)
    with pytest.raises(NonFiniteError, match=r"image 1 from step 2, of 3"):
        pipe(label=[0, 1, 2], guidance=Spoiled(spoil), **{**SMALL, "output_type": "pil"})


def test_a_decoder_that_overflows_is_named_too():
    class Overflows(nn.Module):
        factor, channels, image_channels = 1, 1, 1

        def encode(self, image, noise=None):
            return image

        def decode(self, z):
            return z.index_fill(0, torch.tensor([0]), float("inf"))

    plain = model()
    whole = ldmkit.LatentDiffusion(
        first_stage=Overflows(), backbone=plain.backbone, process=plain.process, prediction="v"
    )
    call = {**SMALL, "output_type": "pt", "num_images_per_prompt": 2}
    with pytest.raises(NonFiniteError, match=r"first stage .* images \[0\]: run it in float32"):
        ldmkit.pipeline("unconditional", whole.eval())(**call)


def test_running_out_of_memory_halves_the_batch_and_gives_the_same_images(pipe):
    tried = []

    def spoil(x0, level):
        tried.append(x0.shape[0])
        if x0.shape[0] > 2:
            raise torch.OutOfMemoryError("no")
        return x0

    call = {"label": [0, 1, 2, 0, 1], **SMALL}
    halved = pipe(guidance=Spoiled(spoil), **call).latents
    assert tried == [5, 3] + [2] * 6 + [1] * 3
    torch.testing.assert_close(halved, pipe(**call).latents, atol=1e-4, rtol=0)


def test_one_image_that_does_not_fit_is_an_error(pipe):
    def spoil(x0, level):
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        pipe(label=[0, 1], guidance=Spoiled(spoil), **SMALL)
    assert pipe(label=0, **SMALL).latents.isfinite().all()


def test_parts_keep_scales_seeds_and_latents_together(pipe):
    call = {"label": [0, 1, 2], "guidance_scale": [1.5, 2.0, 3.0], "seed": [7, 8, 9], **SMALL}
    torch.testing.assert_close(pipe(**call, max_batch=2).latents, pipe(**call).latents, atol=1e-4, rtol=0)
    start = torch.randn(3, 1, 8, 8)
    whole = pipe(**call, latents=start).latents
    torch.testing.assert_close(pipe(**call, latents=start, max_batch=1).latents, whole, atol=1e-4, rtol=0)


def test_a_callback_sees_every_step(pipe):
    seen = []
    out = pipe(label=[0, 1, 2], callback_on_step_end=seen.append, max_batch=2, **SMALL)
    assert [(step.index, step.images) for step in seen] == [(i, part) for part in ((0, 1), (2,)) for i in range(3)]
    assert all(step.count == 3 for step in seen)
    assert [step.level for step in seen[:3]] == list(out.levels.stops[1:])
    assert torch.equal(seen[2].latents, out.latents[:2])
    assert not torch.equal(seen[0].estimate, seen[1].estimate)


def test_a_callback_changes_the_state(pipe):
    changed = pipe(label=0, callback_on_step_end=lambda step: step.latents * 0 if step.index == 2 else None, **SMALL)
    assert not changed.latents.any()
    with pytest.raises(TypeError, match="callback_on_step_end returned int"):
        pipe(label=0, callback_on_step_end=lambda step: 3, **SMALL)


def test_a_callback_stops_with_the_estimate_so_far(pipe):
    seen = []

    def stop(step):
        seen.append(step.estimate.clone())
        if step.index == 1:
            raise StopSampling

    out = pipe(label=0, callback_on_step_end=stop, **SMALL)
    assert len(seen) == 2
    assert torch.equal(out.latents, seen[1])


def test_previews_are_decoded_estimates(pipe):
    out = pipe(label=[0, 1], previews=2, max_batch=1, **{**SMALL, "num_inference_steps": 5})
    assert [(preview.step, preview.images) for preview in out.previews] == [(1, (0,)), (3, (0,)), (1, (1,)), (3, (1,))]
    assert out.previews[0].pixels.shape == (1, 1, 8, 8)
    assert out.previews[0].pixels.aminmax().min >= 0


def test_an_interrupted_call_leaves_the_pipeline_usable(pipe):
    def interrupt(step):
        raise KeyboardInterrupt

    before = pipe(label=1, **SMALL).latents
    with pytest.raises(KeyboardInterrupt):
        pipe(label=1, callback_on_step_end=interrupt, **SMALL)
    assert torch.equal(pipe(label=1, **SMALL).latents, before)


def live_tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_call_allocates_nothing_that_stays(pipe):
    def call():
        pipe(label=[0, 1], guidance_scale=2.0, previews=2, **{**SMALL, "output_type": "pil"})

    for _ in range(2):
        call()
    before = live_tensors()
    for _ in range(20):
        call()
    assert live_tensors() <= before


def test_threads_share_a_pipeline(pipe):
    samplers = ["ddim", "plms", "heun", "dpmpp-2m"]
    calls = [{"label": i % 3, "seed": i, "num_inference_steps": 2 + i, "sampler": s} for i, s in enumerate(samplers)]
    alone = [pipe(**{**SMALL, **call}).latents for call in calls]
    found = [None] * len(calls)

    def work(i):
        found[i] = pipe(**{**SMALL, **calls[i]}).latents

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_bar_can_be_switched_off(pipe, capfd):
    pipe(label=0, **SMALL)
    assert capfd.readouterr().err == ""
    pipe(label=0, **{**SMALL, "progress": True})
    assert "3" in capfd.readouterr().err


class Words(nn.Module):
    """Counts how many prompts it encoded; a prompt's context is its length."""

    reads = ("prompt",)
    provides = {"context": 8}  # noqa: RUF012 - part of the protocol

    def __init__(self):
        super().__init__()
        self.encoded = []

    def forward(self, batch):
        self.encoded.append(list(batch["prompt"]))
        return Conditioning(context=torch.stack([torch.full((2, 8), float(len(p))) for p in batch["prompt"]]))

    def null(self, batch):
        return self({"prompt": [""] * len(batch["prompt"])})


@dataclass(frozen=True)
class Prompted:
    """The smallest text task with a negative prompt."""

    takes = ("prompt", "negative_prompt")
    fills = ("prompt",)

    def prepare(self, inputs):
        return {"prompt": [inputs["prompt"]] if isinstance(inputs["prompt"], str) else list(inputs["prompt"])}

    def frame(self, inputs, model):
        negative = inputs.get("negative_prompt")
        return ldmkit.Frame(inputs, negative=None if negative is None else {"prompt": negative})


@pytest.fixture
def text():
    words = Words()
    plain = model(CLASSES)
    whole = ldmkit.LatentDiffusion(
        first_stage=plain.stage, backbone=plain.backbone, process=plain.process, prediction="v", conditioner=words
    )
    return ldmkit.pipeline(Prompted(), whole.eval())


def test_identical_prompts_are_encoded_once(text):
    words = text.model.conditioner.sources["prompt"]
    out = text(prompt=["one", "three", "one"], num_images_per_prompt=2, seed=[0] * 6, **SMALL).latents
    assert words.encoded == [["one", "three"]]
    assert torch.equal(out[0], out[4])
    assert not torch.equal(out[0], out[2])


def test_a_negative_prompt_is_the_conditioner_on_another_batch(text):
    words = text.model.conditioner.sources["prompt"]
    out = text(prompt=["one", "three"], negative_prompt=["no", "nothing"], guidance_scale=3.0, **SMALL)
    assert words.encoded == [["one", "three"], ["no", "nothing"]]
    null = text(prompt=["one", "three"], guidance_scale=3.0, **SMALL)
    assert words.encoded[-1] == ["", ""] or words.encoded[-1] == [""]
    assert not torch.equal(out.latents, null.latents)
    with pytest.raises(OptionError, match="negative prompt is compared with by guidance, which is off"):
        text(prompt="one", negative_prompt=["no"], **SMALL)
