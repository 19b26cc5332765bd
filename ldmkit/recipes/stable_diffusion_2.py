"""Stable Diffusion 2: from prompts, for inpainting, from depth, for upscaling, and from image embeddings.

Versions 2.0 and 2.1 of a model share a recipe. All read OpenCLIP's ViT-H-14, the last layer but one.

Source: the README of the models' repository; Ramesh et al. 2022 (arXiv 2204.06125) for the image embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping

from ldmkit.parts import Part, Recipe, Source, Value
from ldmkit.recipes.first_stages import first_stage
from ldmkit.recipes.notes import UNKNOWN_DROP, notes, sampling

_SITE = "https://huggingface.co/stabilityai"
_LICENCE = "CreativeML Open RAIL++-M"
_PROMPT = 'prompt="a professional photograph of an astronaut riding a horse"'


def sd_2_base() -> Recipe:
    """Prompts, 512 x 512: Stable Diffusion 2-base."""
    said = notes(
        published_as="v2-inference",
        task="text-to-image",
        inputs=_PROMPT,
        source=f"{_SITE}/stable-diffusion-2-base",
        ema="only",
        sampling=sampling(50, 512, guidance_scale=9.0),
        null="the empty prompt",
        licence=_LICENCE,
        remarks=["A file of it does not differ from one of sd-2-v but in its numbers: say which.", UNKNOWN_DROP],
    )
    return _recipe({}, {}, said)


def sd_2_v() -> Recipe:
    """Prompts, 768 x 768: Stable Diffusion 2, which predicts v."""
    said = notes(
        published_as="v2-inference-v",
        task="text-to-image",
        inputs=_PROMPT,
        source=f"{_SITE}/stable-diffusion-2",
        ema="only",
        sampling=sampling(50, 768, guidance_scale=9.0),
        null="the empty prompt",
        licence=_LICENCE,
        remarks=[
            "A file of it does not differ from one of sd-2-base but in its numbers: say which.",
            "Version 2.1 overflows in float16: run it in bfloat16 or float32.",
            UNKNOWN_DROP,
        ],
    )
    return _recipe({}, {}, said, prediction="v")


def sd_2_inpainting() -> Recipe:
    """Prompts for a hole in an image, 512 x 512: Stable Diffusion 2, finetuned."""
    hidden = {"channels": 4, "order": ["mask", "latent"], "mask_range": [0.0, 1.0], "hole": 0.0}
    said = notes(
        published_as="v2-inpainting-inference",
        task="inpainting",
        inputs='prompt="a yellow cat on a park bench", image=photo, mask_image=hole',
        source=f"{_SITE}/stable-diffusion-2-inpainting",
        ema="only",
        sampling=sampling(50, 512, guidance_scale=10.0),
        null="the empty prompt, the same masked image",
        licence=_LICENCE,
        remarks=[
            "Masks reach the network as 0 (keep) and 1 (hole), before the latent of the masked image.",
            UNKNOWN_DROP,
        ],
    )
    masked = {"masked_image": Source(Part("masked-image", hidden), guided=False)}
    return _recipe({"concat_channels": 5}, masked, said)


def sd_2_depth() -> Recipe:
    """Prompts and a depth map, 512 x 512: Stable Diffusion 2, finetuned."""
    said = notes(
        published_as="v2-midas-inference",
        task="depth-to-image",
        inputs='prompt="a lighthouse", depth_map=depth',
        source=f"{_SITE}/stable-diffusion-2-depth",
        ema="only",
        sampling=sampling(50, 512, guidance_scale=9.0),
        null="the empty prompt, the same depth",
        licence=_LICENCE,
        unused={"depth_model.": "the network that estimates depth: depth maps come from the user"},
        remarks=["The depth maps are MiDaS's: larger is nearer, in any unit.", UNKNOWN_DROP],
    )
    return _recipe({"concat_channels": 1}, {"depth": Source(Part("depth", {"factor": 8}), guided=False)}, said)


def sd_x4_upscaler() -> Recipe:
    """Prompts and an image to four times its size, told how noisy it is: the upscaler of Stable Diffusion 2."""
    unet = {
        "channels": 4,
        "model_channels": 256,
        "channel_mult": [1, 2, 2, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [2, 4, 8],
        "disable_self_attention": [True, True, True, False],
        "concat_channels": 3,
        "num_classes": 1000,
        "num_heads": 8,
        "context_dim": 1024,
        "linear_projections": True,
    }
    low_res = Part("noised-low-res", {"channels": 3, "levels": 1000})
    return Recipe(
        first_stage=first_stage("kl-f4", scale=0.08333, channels=4),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 1e-4, "end": 2e-2}),
        prediction="v",
        sources={"text": Source(_text(), drop=0.1), "low_res": Source(low_res, guided=False)},
        notes=notes(
            published_as="x4-upscaling",
            task="super-resolution",
            inputs='prompt="a white cat", image=small',
            source=f"{_SITE}/stable-diffusion-x4-upscaler",
            ema="only",
            sampling=sampling(50, 512, guidance_scale=9.0),
            null="the empty prompt, the same image at the same level of noise",
            licence=_LICENCE,
            unused={"low_scale_model.": "the schedule by which the image is noised, which the conditioner computes"},
            remarks=[
                "The level of the image's noise is 20 in the publisher's demo, 100 for images that were made by a "
                "model; training drew it below 350.",
                UNKNOWN_DROP,
            ],
        ),
    )


def sd_2_unclip_h() -> Recipe:
    """Prompts and an image embedding of OpenCLIP ViT-H-14, 768 x 768: variations of an image."""
    return _unclip("h", 1024, "OpenCLIP ViT-H-14", ())


def sd_2_unclip_l() -> Recipe:
    """Prompts and an image embedding of CLIP ViT-L/14, 768 x 768: variations of an image."""
    statistics = (
        "Noise is scaled by statistics of the embeddings that are published beside the file, as ViT-L-14_stats.th: "
        "give them to its conditioner as mean and std; without them a level above 0 adds too much or too little.",
    )
    return _unclip("l", 768, "CLIP ViT-L/14", statistics)


def _unclip(letter: str, width: int, tower: str, further: tuple[str, ...]) -> Recipe:
    said = notes(
        published_as=f"v2-1-stable-unclip-{letter}-inference",
        task="image-variation",
        inputs='prompt="", image_embedding=embedding',
        source=f"{_SITE}/stable-diffusion-2-1-unclip",
        ema="only",
        sampling=sampling(20, 768, guidance_scale=10.0),
        null="the empty prompt and zeros in place of the embedding and its level",
        licence=_LICENCE,
        paper="2204.06125",
        unused={
            "embedder.": f"the image tower of {tower}: embeddings come from the user",
            "noise_augmentor.": "the schedule by which the embedding is noised, which the conditioner computes",
        },
        remarks=[f"It reads the projected embedding of {tower}, (B, {width}).", *further, UNKNOWN_DROP],
    )
    image = {"image": Source(Part("noised-embedding", {"size": width}), drop=0.25)}
    return _recipe({"vector_dim": 2 * width}, image, said, prediction="v")


def _recipe(
    options: Mapping[str, object], sources: Mapping[str, Source], said: Mapping[str, Value], prediction: str = "eps"
) -> Recipe:
    """The composition that all but the upscaler share."""
    unet = {
        "channels": 4,
        "model_channels": 320,
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1],
        "head_channels": 64,
        "context_dim": 1024,
        "linear_projections": True,
    }
    return Recipe(
        first_stage=first_stage("kl-f8", scale=0.18215),
        backbone=Part("unet", {**unet, **options}),
        process=Part("vp", {"start": 0.00085, "end": 0.012}),
        prediction=prediction,
        sources={"text": Source(_text(), drop=0.1), **sources},
        notes=said,
    )


def _text() -> Part:
    """The text tower of OpenCLIP's ViT-H-14, to be filled from the file."""
    return Part("openclip-text", {"architecture": "ViT-H-14", "context": "penultimate-norm"})
