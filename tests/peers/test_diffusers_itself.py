"""Folders that diffusers wrote, with random weights at small widths: the same latents and images as diffusers itself.

Both sides run DDIM from the same start. The tolerance of 1e-4 is that of two orders of float32 sums over a few steps.
"""

import json
import warnings

import numpy as np
import pytest
import torch

import ldmkit
from ldmkit.weights.diffusers import Spacing, export_diffusers, import_diffusers, read_diffusers_recipe

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

pytestmark = pytest.mark.filterwarnings("ignore")
needs_text = pytest.mark.skipif(
    "clip-text" not in ldmkit.names("conditioner"), reason="the text encoders are those of ldmkit-transformers"
)
STEPS = 4
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
SD_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
AUTOENCODER = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 16}
KL = {
    **AUTOENCODER,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "scaling_factor": 0.3,
}
VQ = {
    **AUTOENCODER,
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    "num_vq_embeddings": 24,
    "scaling_factor": 0.7,
}
PLAIN = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "attention_head_dim": 16,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CONDITION = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def clip_tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: n for n, word in enumerate(words)}, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=12
    )


def clip_text(layers=2, act="quick_gelu"):
    words = {"vocab_size": 56, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": layers}
    words |= {"num_attention_heads": 2, "max_position_embeddings": 12, "bos_token_id": 54, "eos_token_id": 55}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**words, hidden_act=act)).eval()


def stable_diffusion(family, unet=None, schedule=None, kl=None, text=None, **further):
    return family(
        vae=diffusers.AutoencoderKL(**{**KL, **(kl or {})}),
        unet=diffusers.UNet2DConditionModel(**{**CONDITION, **(unet or {})}),
        scheduler=diffusers.DDIMScheduler(**{**SD_SCHEDULE, **(schedule or {})}),
        text_encoder=text or clip_text(),
        tokenizer=clip_tokenizer(),
        **further,
    )


def moved(pipe):
    """The pipeline with its zero biases and unit norms moved, so that every tensor matters."""
    for part in pipe.components.values():
        for name, value in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
            if value.ndim == 1:
                value.data += 0.1 * torch.randn_like(value)
            elif "quantize" in name:
                value.data = torch.randn_like(value)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both(pipe, folder):
    """(their pipeline, our model from its folder, the levels of its folder)."""
    moved(pipe).save_pretrained(folder)
    model = import_diffusers(folder)
    spacing = Spacing(**read_diffusers_recipe(folder).notes["levels"])
    return pipe, model, spacing.levels(model.process, STEPS)


def images(model, z):
    return (model.decode(z) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


UNCONDITIONAL = {
    "vq": {},
    "one head": {"attention_head_dim": None},
    "resblock up and down, scale and shift": {
        "down_block_types": ("AttnDownBlock2D",) * 2,
        "up_block_types": ("AttnUpBlock2D",) * 2,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
    },
    "three levels": {
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
}


@pytest.mark.parametrize("options", UNCONDITIONAL.values(), ids=UNCONDITIONAL.keys())
def test_unconditional_models_draw_the_same_images(options, tmp_path):
    pipe, model, levels = both(
        diffusers.LDMPipeline(
            vqvae=diffusers.VQModel(**VQ),
            unet=diffusers.UNet2DModel(**{**PLAIN, **options}),
            scheduler=diffusers.DDIMScheduler(**{**SD_SCHEDULE, "set_alpha_to_one": True, "steps_offset": 0}),
        ),
        tmp_path / "folder",
    )
    theirs = pipe(2, torch.Generator().manual_seed(5), num_inference_steps=STEPS, output_type="np").images
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    z = model.sample(size=(16, 16), levels=levels, start=start)
    np.testing.assert_allclose(images(model, z), theirs, **CLOSE)


def test_super_resolution_draws_the_same_images(tmp_path):
    pipe, model, levels = both(
        diffusers.LDMSuperResolutionPipeline(
            vqvae=diffusers.VQModel(**VQ),
            unet=diffusers.UNet2DModel(**{**PLAIN, "in_channels": 6}),
            scheduler=diffusers.DDIMScheduler(**SD_SCHEDULE),
        ),
        tmp_path / "folder",
    )
    low_res = torch.rand(2, 3, 8, 8) * 2 - 1
    theirs = pipe(low_res, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(5), output_type="np")
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    z = model.sample({"low_res": low_res}, size=(16, 16), levels=levels, start=start)
    np.testing.assert_allclose(images(model, z), theirs.images, **CLOSE)


def text_to_image():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat"]
    bert = {"vocab_size": 8, "encoder_layers": 2, "encoder_ffn_dim": 96, "encoder_attention_heads": 2}
    levels = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    levels |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return diffusers.LDMTextToImagePipeline(
        vqvae=diffusers.AutoencoderKL(**{**KL, **levels}),
        bert=LDMBertModel(LDMBertConfig(**bert, head_dim=16, d_model=24)).eval(),
        tokenizer=transformers.BertTokenizer(vocab={word: n for n, word in enumerate(words)}),
        unet=diffusers.UNet2DConditionModel(**CONDITION),
        scheduler=diffusers.DDIMScheduler(**SD_SCHEDULE),
    )


@needs_text
def test_text_to_image_with_ldmbert_draws_the_same_images(tmp_path):
    pipe, model, levels = both(text_to_image(), tmp_path / "folder")
    start = torch.randn(2, 4, 8, 8)
    prompts = ["a red cat", "cat"]
    theirs = pipe(
        prompts, 64, 64, num_inference_steps=STEPS, guidance_scale=3.0, latents=start, output_type="np"
    ).images
    cfg = ldmkit.build("guidance", "cfg", scale=3.0)
    z = model.sample({"prompt": prompts}, size=(64, 64), levels=levels, start=start, guidance=cfg)
    np.testing.assert_allclose(images(model, z), theirs, **CLOSE)


TEXT = {
    "sd 1": {},
    "sd 2": {
        "unet": {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
        "schedule": {"prediction_type": "v_prediction"},
    },
    "trailing, zero terminal snr": {
        "schedule": {
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
            "set_alpha_to_one": True,
        }
    },
    "deeper transformers": {
        "unet": {
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "transformer_layers_per_block": (1, 2),
        }
    },
}


def text_to_image_with_clip():
    return stable_diffusion(diffusers.StableDiffusionPipeline, **UNCHECKED)


@needs_text
@pytest.mark.parametrize("options", TEXT.values(), ids=TEXT.keys())
def test_stable_diffusion_draws_the_same_latents_and_images(options, tmp_path):
    text = clip_text(3, "gelu") if "unet" in options else None
    pipe, model, levels = both(
        stable_diffusion(
            diffusers.StableDiffusionPipeline,
            text=text,
            **options,
            **UNCHECKED,
        ),
        tmp_path / "folder",
    )
    start, prompts, negative = torch.randn(2, 4, 8, 8), ["a cat", "dog on moon"], ["bad", ""]
    call = {"height": 16, "width": 16, "num_inference_steps": STEPS, "guidance_scale": 4.0, "latents": start}
    cfg = ldmkit.build("guidance", "cfg", scale=4.0)
    ours = {"size": (16, 16), "levels": levels, "start": start, "guidance": cfg}
    theirs = pipe(prompts, **call, negative_prompt=negative, output_type="latent").images
    z = model.sample({"prompt": prompts}, negative={"prompt": negative}, **ours)
    torch.testing.assert_close(z, theirs, **CLOSE)
    theirs = pipe(prompts, **call, output_type="np").images
    np.testing.assert_allclose(images(model, model.sample({"prompt": prompts}, **ours)), theirs, **CLOSE)


@needs_text
def test_notes_say_what_the_pipeline_does_and_not_what_its_sampler_says(tmp_path):
    moved(text_to_image_with_clip()).save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder/scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps_offset": 0, "clip_sample": True}))
    used = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "folder").scheduler.config
    notes = read_diffusers_recipe(tmp_path / "folder").notes
    assert notes["levels"]["offset"] == used.steps_offset == 1
    assert (notes["clip"], used.clip_sample) == (None, False)


@needs_text
def test_a_depth_model_is_told_depth_beside_its_prompt(tmp_path):
    unet = {"in_channels": 5}
    moved(stable_diffusion(diffusers.StableDiffusionPipeline, unet=unet, **UNCHECKED)).save_pretrained(tmp_path / "f")
    path = tmp_path / "f/model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "StableDiffusionDepth2ImgPipeline"}))
    model = import_diffusers(tmp_path / "f")
    assert model.conditioner.provides == {"context": 24, "concat": 1}
    assert model.conditioner.guided == ("text",)
    assert model.conditioner.conditioners()["depth"].factor == model.first_stage.factor


def inpainting():
    return stable_diffusion(
        diffusers.StableDiffusionInpaintPipeline,
        unet={"in_channels": 9},
        **UNCHECKED,
    )


@needs_text
def test_inpainting_draws_the_same_latents(tmp_path):
    pipe, model, levels = both(inpainting(), tmp_path / "folder")
    assert model.conditioner.conditioners()["masked_image"].hole == 0
    start, image = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 16, 16) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:10] = 1
    hidden = image * (mask < 0.5)
    known = pipe.vae.encode(hidden).latent_dist.mode() * pipe.vae.config.scaling_factor
    theirs = pipe(
        "a cat",
        image=image,
        mask_image=mask,
        masked_image_latents=known,
        height=16,
        width=16,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        latents=start,
        output_type="latent",
    ).images
    batch = {"prompt": ["a cat"], "masked_image": hidden, "mask": mask}
    cfg = ldmkit.build("guidance", "cfg", scale=4.0)
    z = model.sample(batch, size=(16, 16), levels=levels, start=start, guidance=cfg)
    torch.testing.assert_close(z, theirs, **CLOSE)


def upscaler():
    return stable_diffusion(
        diffusers.StableDiffusionUpscalePipeline,
        unet={
            "in_channels": 7,
            "num_class_embeds": 1000,
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "only_cross_attention": (True, False),
            "use_linear_projection": True,
        },
        kl={"scaling_factor": 0.08333},
        schedule={"prediction_type": "v_prediction", "beta_start": 0.0001, "beta_end": 0.02},
        low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="scaled_linear"),
    )


@needs_text
def test_the_upscaler_draws_the_same_latents(tmp_path):
    pipe, model, levels = both(upscaler(), tmp_path / "folder")
    start, low_res = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 8, 8) * 2 - 1
    prompts = ["a cat", "moon"]
    theirs = pipe(
        prompts,
        image=low_res,
        noise_level=20,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        latents=start,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    batch = {"prompt": prompts, "low_res": low_res, "noise_level": torch.tensor([20, 20]), "low_res_noise": noise}
    cfg = ldmkit.build("guidance", "cfg", scale=4.0)
    z = model.sample(batch, size=(16, 16), levels=levels, start=start, guidance=cfg)
    torch.testing.assert_close(z, theirs, **CLOSE)
    assert float(model.first_stage.scale) == pytest.approx(0.08333)


def test_encoders_agree(tmp_path):
    for family, options in ((diffusers.AutoencoderKL, KL), (diffusers.VQModel, VQ)):
        pipe = diffusers.LDMPipeline(
            vqvae=family(**options),
            unet=diffusers.UNet2DModel(
                **{**PLAIN, "in_channels": 4 if options is KL else 3, "out_channels": 4 if options is KL else 3}
            ),
            scheduler=diffusers.DDIMScheduler(),
        )
        pipe, model, _ = both(pipe, tmp_path / family.__name__)
        image = torch.rand(2, 3, 16, 16) * 2 - 1
        with torch.no_grad():
            encoded = pipe.vqvae.encode(image)
        raw = encoded.latent_dist.mode() if options is KL else encoded.latents
        torch.testing.assert_close(model.encode(image), raw * options["scaling_factor"], **CLOSE)


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "PNDM", "LMSDiscrete"])
def test_a_schedulers_betas_make_the_process(name, tmp_path):
    scheduler = getattr(diffusers, f"{name}Scheduler")(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.015)
    pipe = diffusers.LDMPipeline(
        vqvae=diffusers.VQModel(**VQ), unet=diffusers.UNet2DModel(**PLAIN), scheduler=scheduler
    )
    pipe.save_pretrained(tmp_path / "folder")
    process = ldmkit.registry.build_part("process", read_diffusers_recipe(tmp_path / "folder").process)
    torch.testing.assert_close(process.alpha_bar.float(), scheduler.alphas_cumprod, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "words", [{}, {"steps_offset": 1}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}]
)
@pytest.mark.parametrize("n", [1, 4, 7, 50, 999])
def test_levels_stop_where_the_folders_sampler_stops(words, n):
    if words.get("timestep_spacing") == "linspace" and n == 1:
        pytest.skip("theirs asks at index 0, from a state of pure noise")
    scheduler = diffusers.DDIMScheduler(**words)
    scheduler.set_timesteps(n)
    spacing = Spacing(words.get("timestep_spacing", "leading"), words.get("steps_offset", 0), clean=True)
    levels = spacing.levels(ldmkit.build("process", "vp"), n)
    assert [int(level.t) for level in levels.stops[:-1]] == scheduler.timesteps.tolist()


@needs_text
@pytest.mark.parametrize("make", [text_to_image, text_to_image_with_clip, inpainting, upscaler])
def test_diffusers_loads_the_same_tensors_and_tokens_from_what_is_exported(make, tmp_path):
    pipe, model, _ = both(make(), tmp_path / "theirs")
    export_diffusers(model, tmp_path / "ours")
    again = type(pipe).from_pretrained(tmp_path / "ours")
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            first, second = part.state_dict(), getattr(again, name).state_dict()
            assert first.keys() == second.keys()
            assert all(torch.equal(value, second[key]) for key, value in first.items())
    prompts, padded = ["a red cat", "", "Cat <|endoftext|>"], {"padding": "max_length", "max_length": 12}
    assert again.tokenizer(prompts, **padded).input_ids == pipe.tokenizer(prompts, **padded).input_ids


@needs_text
@pytest.mark.parametrize("make", [text_to_image, text_to_image_with_clip, inpainting, upscaler])
def test_what_is_exported_is_imported_bitwise(make, tmp_path):
    _, model, _ = both(make(), tmp_path / "theirs")
    export_diffusers(model, tmp_path / "ours")
    again = import_diffusers(tmp_path / "ours")
    first, second = model.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(v, second[k]) for k, v in first.items() if not k.endswith("_extra_state"))
    texts = [one.conditioner.conditioners()["text"] for one in (model, again)]
    first, second = (text({"prompt": ["a red cat", "Cat on moon"]}).context for text in texts)
    assert torch.equal(first, second)


@needs_text
@pytest.mark.parametrize("make", [text_to_image, text_to_image_with_clip])
def test_an_imported_model_is_saved_as_ours_with_its_tokenizer(make, tmp_path):
    _, model, _ = both(make(), tmp_path / "theirs")
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "theirs").rename(tmp_path / "elsewhere")
    again = ldmkit.load(tmp_path / "model.safetensors")
    batch = {"prompt": ["a red cat"]}
    assert torch.equal(again.conditioner(batch).context, model.conditioner(batch).context)


@needs_text
def test_an_exported_pipeline_draws_the_same_images(tmp_path):
    pipe, model, _ = both(text_to_image_with_clip(), tmp_path / "theirs")
    export_diffusers(model, tmp_path / "ours")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8)
    call = {"num_inference_steps": 2, "latents": start, "output_type": "np", "height": 16, "width": 16}
    np.testing.assert_allclose(again("a cat", **call).images, pipe("a cat", **call).images, atol=1e-5)


def test_diffusers_loads_an_exported_unconditional_model(tmp_path):
    unet = {"channels": 3, "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1}
    model = ldmkit.LatentDiffusion(
        first_stage=ldmkit.build(
            "first-stage", "vq", channels=3, codebook_size=9, base_channels=32, channel_mult=[1, 2]
        ),
        backbone=ldmkit.build("backbone", "unet", **unet, attention_resolutions=[2], head_channels=32),
        process=ldmkit.build("process", "vp"),
    ).eval()
    torch.nn.init.normal_(model.backbone.out[2].weight, std=0.1)
    torch.nn.init.normal_(model.first_stage.quantize.embedding.weight)
    export_diffusers(model, tmp_path / "folder", sample_size=8)
    pipe = diffusers.LDMPipeline.from_pretrained(tmp_path / "folder")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(1, torch.Generator().manual_seed(5), num_inference_steps=STEPS, output_type="np").images
    start = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    z = model.sample(size=(16, 16), levels=STEPS, start=start)
    np.testing.assert_allclose(images(model, z), theirs, **CLOSE)
    assert json.loads((tmp_path / "folder/model_index.json").read_text())["vqvae"] == ["diffusers", "VQModel"]
