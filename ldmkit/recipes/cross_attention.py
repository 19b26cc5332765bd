"""The published models that read their condition by cross-attention: a class, a prompt, a layout, an embedding.

Four of them were trained with one attention head, whatever a configuration of today's code says.

Source: Rombach et al. 2022 (arXiv 2112.10752), tables 3, 9, 10, 13 and 15; Blattmann et al. 2022 (arXiv 2204.11824).
"""

from __future__ import annotations

from ldmkit.parts import Part, Recipe, Source
from ldmkit.recipes.first_stages import first_stage
from ldmkit.recipes.notes import ONE_HEAD, UNKNOWN_DROP, notes, sampling

_SITE = "https://ommer-lab.com/files/latent-diffusion"
_WORDS = {"vocabulary": 30522}


def cin256() -> Recipe:
    """ImageNet classes, 256 x 256: LDM-8, without a null class."""
    unet = {
        "channels": 4,
        "model_channels": 256,
        "channel_mult": [1, 2, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1],
        "num_heads": 1,
        "context_dim": 512,
    }
    label = Part("class-label", {"classes": 1000, "width": 512, "null_class": False})
    return Recipe(
        first_stage=first_stage("vq-f8"),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 0.0015, "end": 0.0195}),
        sources={"label": Source(label, guided=False)},
        notes=notes(
            published_as="cin256",
            task="class-conditional",
            inputs="label=207",
            source=f"{_SITE}/cin.zip",
            ema="beside",
            sampling=sampling(200, 256, eta=1.0),
            null=None,
            numbers=[
                {"FID": 15.82, "IS": 78.82, "precision": 0.65, "recall": 0.63, "setting": "200 DDIM steps, eta 1"},
                {
                    "FID": 7.77,
                    "IS": 201.56,
                    "precision": 0.84,
                    "recall": 0.35,
                    "setting": "the same with a classifier at scale 10, which is not published",
                },
            ],
            remarks=[ONE_HEAD, "It has no null class: classifier-free guidance is refused."],
        ),
    )


def cin256_v2() -> Recipe:
    """ImageNet classes, 256 x 256, with classifier-free guidance: LDM-4-G."""
    label = Part("class-label", {"classes": 1000, "width": 512})
    scores = {"FID": 3.60, "IS": 247.67, "precision": 0.87, "recall": 0.48}
    return Recipe(
        first_stage=first_stage("vq-f4"),
        backbone=Part("unet", {**_text_unet(), "context_dim": 512}),
        process=Part("vp", {"start": 0.0015, "end": 0.0195}),
        sources={"label": Source(label, drop=0.1)},
        notes=notes(
            published_as="cin256-v2",
            task="class-conditional",
            inputs="label=207",
            source=f"{_SITE}/nitro/cin/model.ckpt",
            ema="only",
            sampling=sampling(20, 256, guidance_scale=3.0),
            null="class 1000 of 1001",
            numbers=[
                {**scores, "setting": "250 DDIM steps, guidance scale 1.5"},
                {"FID": 10.56, "IS": 103.49, "precision": 0.71, "recall": 0.62, "setting": "250 DDIM steps, unguided"},
            ],
            remarks=[UNKNOWN_DROP],
        ),
    )


def text2img256() -> Recipe:
    """Prompts, 256 x 256: LDM-4 on Conceptual Captions, finetuned from LAION."""
    text = Part("bert-text", {"width": 640, "depth": 32, **_WORDS})
    return Recipe(
        first_stage=first_stage("vq-f4"),
        backbone=Part("unet", {**_text_unet(), "context_dim": 640}),
        process=Part("vp", {"start": 0.0015, "end": 0.0195}),
        sources={"text": Source(text)},
        notes=notes(
            published_as="text2img256",
            task="text-to-image",
            inputs='prompt="a photograph of a lighthouse"',
            source=f"{_SITE}/text2img.zip",
            ema="beside",
            sampling=sampling(100, 256),
            null="the empty prompt",
            numbers=[{"FID": 16.79, "IS": 13.89, "setting": "100 DDIM steps, eta 0"}],
            remarks=[ONE_HEAD, "The tokenizer is that of bert-base-uncased and is not in the file."],
        ),
    )


def txt2img_1p4b() -> Recipe:
    """Prompts, 256 x 256, with classifier-free guidance: LDM-8 of 1.45 billion parameters on LAION-400M."""
    unet = {
        "channels": 4,
        "model_channels": 320,
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1],
        "num_heads": 8,
        "context_dim": 1280,
    }
    text = Part("bert-text", {"width": 1280, "depth": 32, **_WORDS})
    return Recipe(
        first_stage=first_stage("kl-f8", scale=0.18215),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 0.00085, "end": 0.012}),
        sources={"text": Source(text, drop=0.1)},
        notes=notes(
            published_as="txt2img-1p4B-eval",
            task="text-to-image",
            inputs='prompt="a virus monster is playing guitar, oil on canvas"',
            source=f"{_SITE}/nitro/txt2img-f8-large/model.ckpt",
            ema="only",
            sampling=sampling(200, 256, guidance_scale=5.0),
            null="the empty prompt",
            numbers=[
                {"FID": 12.63, "IS": 30.29, "setting": "COCO, 30,000 captions, 250 DDIM steps, guidance scale 1.5"},
                {"FID": 23.31, "IS": 20.03, "setting": "COCO, 30,000 captions, 250 DDIM steps, unguided"},
            ],
            remarks=[UNKNOWN_DROP, "The tokenizer is that of bert-base-uncased and is not in the file."],
        ),
    )


def layout2img_openimages256() -> Recipe:
    """Boxes with classes of OpenImages, 256 x 256: LDM-4."""
    unet = {
        "channels": 3,
        "model_channels": 128,
        "channel_mult": [1, 2, 3, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [8, 4, 2],
        "num_heads": 1,
        "context_dim": 512,
        "transformer_depth": 3,
    }
    flags = ["group", "occluded", "depiction", "inside"]
    layout = Part("layout", {"classes": 340, "width": 512, "depth": 16, "flags": flags})
    return Recipe(
        first_stage=first_stage("vq-f4"),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 0.0015, "end": 0.0205}),
        sources={"layout": Source(layout)},
        objective={"norm": "l1"},
        notes=notes(
            published_as="layout2img-openimages256",
            task="layout-to-image",
            inputs="boxes=[(5, 0.1, 0.2, 0.4, 0.6)]",
            source=f"{_SITE}/layout2img_model.zip",
            ema="beside",
            sampling=sampling(200, 256),
            null="no objects, the same crop",
            numbers=[{"FID": 32.02, "IS": 15.92, "setting": "OpenImages 256 x 256, 200 DDIM steps, eta 0"}],
            remarks=[
                ONE_HEAD,
                "Its data set's class was never published: 340 classes and the four flags are those of the tokens' "
                "own code.",
            ],
        ),
    )


def rdm_768() -> Recipe:
    """CLIP embeddings of a prompt or of retrieved images, 768 x 768: retrieval-augmented diffusion."""
    unet = {
        "channels": 16,
        "model_channels": 448,
        "channel_mult": [1, 2, 3, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [4, 2, 1],
        "head_channels": 32,
        "context_dim": 768,
    }
    embedding = Part("precomputed", {"key": "clip_embedding", "slot": "context", "size": 768})
    return Recipe(
        first_stage=first_stage("kl-f16", scale=0.22765929),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 0.0015, "end": 0.015}),
        sources={"embedding": Source(embedding, drop=0.1)},
        notes=notes(
            published_as="768x768",
            task="embedding-to-image",
            inputs="embedding=embedding",
            source="https://ommer-lab.com/files/rdm/model.ckpt",
            ema="beside",
            sampling=sampling(50, 768, guidance_scale=5.0),
            null="zeros",
            paper="2204.11824",
            remarks=[
                "It reads embeddings of unit length from CLIP ViT-L/14, (B, 1 + k, 768): the prompt's, then those of k "
                "neighbours, at most 20. CLIP is not in the file.",
                UNKNOWN_DROP,
            ],
        ),
    )


def _text_unet() -> dict[str, object]:
    """The network of two models, whose width of the context is all that differs."""
    return {
        "channels": 3,
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 5],
        "num_res_blocks": 2,
        "attention_resolutions": [8, 4, 2],
        "num_heads": 1,
    }
