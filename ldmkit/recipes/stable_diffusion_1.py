"""Stable Diffusion 1, and the model for inpainting that was finetuned from it.

Source: the README files of the repositories of Stable Diffusion and of its publisher's inpainting model.
"""

from __future__ import annotations

from ldmkit.parts import Part, Recipe, Source
from ldmkit.recipes.first_stages import first_stage
from ldmkit.recipes.notes import notes, sampling

_LICENCE = "CreativeML OpenRAIL-M"
_UNUSED = {"cond_stage_model.transformer.text_model.embeddings.position_ids": "the numbers 0 to 76"}


def sd_1() -> Recipe:
    """Prompts, 512 x 512: Stable Diffusion 1.1 to 1.5."""
    return Recipe(
        first_stage=first_stage("kl-f8", scale=0.18215),
        backbone=Part("unet", _unet()),
        process=Part("vp", {"start": 0.00085, "end": 0.012}),
        sources={"text": Source(_text(), drop=0.1)},
        notes=notes(
            published_as="v1-inference",
            task="text-to-image",
            inputs='prompt="a photograph of an astronaut riding a horse"',
            source="https://huggingface.co/CompVis",
            ema="only",
            sampling=sampling(50, 512, guidance_scale=7.5),
            null="the empty prompt",
            licence=_LICENCE,
            unused=_UNUSED,
            remarks=[
                "Text was dropped in training from version 1.3 on.",
                "CLIP's words are not in the file: fill the tokenizer from openai/clip-vit-large-patch14.",
                "Files called 'full' hold raw weights, and the averaged ones beside them.",
            ],
        ),
    )


def sd_1_inpainting() -> Recipe:
    """Prompts for a hole in an image, 512 x 512: Stable Diffusion 1.5, finetuned."""
    hidden = {"channels": 4, "order": ["mask", "latent"], "mask_range": [0.0, 1.0], "hole": 0.0}
    return Recipe(
        first_stage=first_stage("kl-f8", scale=0.18215),
        backbone=Part("unet", {**_unet(), "concat_channels": 5}),
        process=Part("vp", {"start": 0.00085, "end": 0.012}),
        sources={
            "text": Source(_text(), drop=0.1),
            "masked_image": Source(Part("masked-image", hidden), guided=False),
        },
        notes=notes(
            published_as="sd-v1-5-inpainting",
            task="inpainting",
            inputs='prompt="a yellow cat on a park bench", image=photo, mask_image=hole',
            source="https://huggingface.co/runwayml/stable-diffusion-inpainting",
            ema="only",
            sampling=sampling(50, 512, guidance_scale=7.5),
            null="the empty prompt, the same masked image",
            licence=_LICENCE,
            unused=_UNUSED,
            numbers=[{"FID": 1.00, "LPIPS": 0.141, "setting": "Places, as the paper's inpainting, one fixed prompt"}],
            remarks=[
                "Masks reach the network as 0 (keep) and 1 (hole), before the latent of the masked image.",
                "CLIP's words are not in the file: fill the tokenizer from openai/clip-vit-large-patch14.",
            ],
        ),
    )


def _unet() -> dict[str, object]:
    return {
        "channels": 4,
        "model_channels": 320,
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1],
        "num_heads": 8,
        "context_dim": 768,
    }


def _text() -> Part:
    """The text tower of CLIP ViT-L/14, to be filled from the file."""
    config = {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    }
    return Part("clip-text", {"config": config, "context": "last"})
