"""Stable Diffusion from a file in its original format, text encoder included: the images that other libraries make.

The file is written from transformers' or OpenCLIP's own tower under the published names, at small widths. diffusers
reads the network and the first stage out of it with its own table of names, so that nothing here names a tensor twice.
"""

import warnings

import numpy as np
import pytest
import torch
from benchmarks.original_files import narrow, write, write_clip_words

import ldmkit
from ldmkit.weights.diffusers import Spacing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    open_clip = pytest.importorskip("open_clip")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        not {"clip-text", "openclip-text"} <= set(ldmkit.names("conditioner")),
        reason="the text encoders are those of ldmkit-transformers and ldmkit-openclip",
    ),
]
STEPS, SIDE, SCALE = 3, 64, 4.0
PROMPTS, NEGATIVE = ["a cat", "dog on the moon"], ["bad", ""]
LEVELS = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1}
UNET = {
    **LEVELS,
    "sample_size": 8,
    "cross_attention_dim": 32,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
KL = {
    **LEVELS,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FAMILIES = {
    "sd-1": {"attention_head_dim": 8},
    # 16 channels per head; diffusers calls the number of heads so.
    "sd-2-v": {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True},
}


def file_with(name, text, path):
    """(recipe, state dict) of a file whose text encoder has these tensors."""
    recipe = narrow(ldmkit.recipe(name))
    write(name, recipe, path)
    state = torch.load(path)["state_dict"]
    state = {key: value for key, value in state.items() if not key.startswith("cond_stage_model.")} | text
    torch.save({"state_dict": state}, path)
    return recipe, state


def pipeline_of(name, state, **text):
    """diffusers' pipeline of the file."""
    unet = diffusers.UNet2DConditionModel(**UNET, **FAMILIES[name])
    unet.load_state_dict(convert_ldm_unet_checkpoint(dict(state), dict(unet.config)))
    vae = diffusers.AutoencoderKL(**KL)
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(state), dict(vae.config)))
    prediction = {"prediction_type": "v_prediction" if name == "sd-2-v" else "epsilon"}
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae.eval(),
        unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE, **prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **text,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both_images(pipe, model, **told):
    """(their images, ours) of the same start, prompts and negative prompts."""
    start = torch.randn(2, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(3))
    call = {"height": SIDE, "width": SIDE, "guidance_scale": SCALE, "latents": start, "output_type": "np"}
    levels = Spacing("leading", offset=1, clean=False).levels(model.process, STEPS)
    ours = ldmkit.pipeline("text-to-image", model)(
        prompt=PROMPTS, negative_prompt=NEGATIVE, levels=levels, progress=False, **call
    )
    return pipe(num_inference_steps=STEPS, **call, **told).images, ours.images


def clip_tower(recipe):
    """transformers' text tower as the recipe describes it, with random weights."""
    config = dict(recipe.sources["text"].part.options["config"])
    torch.manual_seed(1)
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).eval()


@pytest.mark.parametrize("level", ["text_model.", ""], ids=["as published", "without the level text_model"])
def test_stable_diffusion_1_draws_the_images_of_diffusers(level, tmp_path):
    tower = clip_tower(narrow(ldmkit.recipe("sd-1")))
    names = {
        key: f"cond_stage_model.transformer.{level}{key.removeprefix('text_model.')}" for key in tower.state_dict()
    }
    text = {names[key]: value for key, value in tower.state_dict().items()}
    text[f"cond_stage_model.transformer.{level}embeddings.position_ids"] = torch.arange(77)[None]
    recipe, state = file_with("sd-1", text, tmp_path / "model.ckpt")
    words = write_clip_words(tmp_path)
    model = ldmkit.import_checkpoint(tmp_path / "model.ckpt", recipe=recipe)
    model.conditioner.conditioners()["text"].read_tokenizer(str(words))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(words, model_max_length=77)
    pipe = pipeline_of("sd-1", state, text_encoder=tower, tokenizer=tokenizer)
    theirs, ours = both_images(pipe, model, prompt=PROMPTS, negative_prompt=NEGATIVE)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert theirs.std() > 0.01


def openclip_tower(recipe):
    """OpenCLIP's model, both halves, as the recipe describes its text half."""
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}
    torch.manual_seed(2)
    architecture = recipe.sources["text"].part.options["architecture"]
    return open_clip.CLIP(**architecture, vision_cfg=vision).eval().requires_grad_(False)


def penultimate(clip, prompts):
    """What Stable Diffusion 2 reads: the last layer but one behind the final norm."""
    x = clip.token_embedding(open_clip.tokenize(prompts)) + clip.positional_embedding
    for block in clip.transformer.resblocks[:-1]:
        x = block(x, attn_mask=clip.attn_mask)
    return clip.ln_final(x)


UNREAD = ("transformer.resblocks.1.", "text_projection", "logit_scale")
"""What of the narrow text tower no output depends on."""

HALVES = {
    "as published": lambda name: not name.startswith(("visual.", "attn_mask")),
    "with the image tower and the mask": lambda name: True,
    "without what is not read": lambda name: not name.startswith(("visual.", "attn_mask", *UNREAD)),
}


@pytest.mark.parametrize("kept", HALVES.values(), ids=HALVES.keys())
def test_stable_diffusion_2_draws_the_images_of_diffusers_from_openclips_text(kept, tmp_path):
    clip = openclip_tower(narrow(ldmkit.recipe("sd-2-v")))
    tensors = {**clip.state_dict(), "attn_mask": clip.attn_mask}
    text = {f"cond_stage_model.model.{name}": value for name, value in tensors.items() if kept(name)}
    recipe, state = file_with("sd-2-v", text, tmp_path / "model.ckpt")
    missing = [] if "cond_stage_model.model.logit_scale" in text else [f"cond_stage_model.model.{n}" for n in UNREAD]
    model = ldmkit.import_checkpoint(tmp_path / "model.ckpt", recipe=recipe, allow_missing=missing)
    context = model.conditioner({"prompt": PROMPTS}).context
    torch.testing.assert_close(context, penultimate(clip, PROMPTS), atol=1e-4, rtol=1e-4)
    pipe = pipeline_of("sd-2-v", state, text_encoder=None, tokenizer=None)
    told = {"prompt_embeds": penultimate(clip, PROMPTS), "negative_prompt_embeds": penultimate(clip, NEGATIVE)}
    theirs, ours = both_images(pipe, model, **told)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert theirs.std() > 0.01
