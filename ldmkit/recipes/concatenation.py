"""The published models that read their condition as channels beside the state: maps, low resolution, masks.

Source: Rombach et al. 2022 (arXiv 2112.10752), sections 4.3 to 4.5, tables 5, 7 and 15.
"""

from __future__ import annotations

from ldmkit.parts import Part, Recipe, Source, Value
from ldmkit.recipes.first_stages import first_stage
from ldmkit.recipes.notes import notes, sampling

_SITE = "https://ommer-lab.com/files/latent-diffusion"
_NO_SETTINGS = (
    "No sampling settings and no results were published: the settings here are the script's for unconditional models."
)


def semantic_synthesis256() -> Recipe:
    """Maps of 182 labels to landscapes, trained on crops of 256 x 256: LDM-4."""
    return _landscapes("semantic_synthesis256", f"{_SITE}/semantic_synthesis256.zip", 256)


def semantic_synthesis512() -> Recipe:
    """Maps of 182 labels to landscapes, finetuned on crops of 512 x 512: LDM-4."""
    return _landscapes("semantic_synthesis512", f"{_SITE}/semantic_synthesis.zip", 512)


def _landscapes(published_as: str, source: str, size: int) -> Recipe:
    unet = {
        "channels": 3,
        "model_channels": 128,
        "channel_mult": [1, 4, 8],
        "num_res_blocks": 2,
        "attention_resolutions": [32, 16, 8],
        "concat_channels": 3,
        "num_heads": 8,
    }
    labels = Part("semantic-map", {"classes": 182, "channels": 3, "stages": 2})
    return Recipe(
        first_stage=first_stage("vq-f4"),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 0.0015, "end": 0.0205}),
        sources={"segmentation": Source(labels, guided=False)},
        objective={"norm": "l1"},
        notes=notes(
            published_as=published_as,
            task="semantic-synthesis",
            inputs="segmentation=labels",
            source=source,
            ema="beside",
            sampling=sampling(50, size, eta=1.0),
            null=None,
            remarks=[_NO_SETTINGS, "It makes pictures larger than its crops, such as 512 x 1024."],
        ),
    )


def bsr_sr() -> Recipe:
    """Low resolution to four times the size: LDM-4 on degraded OpenImages."""
    unet = {
        "channels": 3,
        "model_channels": 160,
        "channel_mult": [1, 2, 2, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [16, 8],
        "concat_channels": 3,
        "head_channels": 32,
    }
    return Recipe(
        first_stage=first_stage("vq-f4"),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 0.0015, "end": 0.0155}),
        sources={"low_res": Source(Part("low-res", {"channels": 3}), guided=False)},
        notes=notes(
            published_as="bsr_sr",
            task="super-resolution",
            inputs="image=small",
            source=f"{_SITE}/sr_bsr.zip",
            ema="beside",
            sampling=sampling(100, 256, eta=1.0),
            null=None,
            remarks=[
                "No results were published for it. The paper's numbers (FID 2.8, PSNR 24.4 for 100 steps) are those of "
                "a model for bicubic degradation, which was not."
            ],
        ),
    )


def inpainting_big() -> Recipe:
    """Holes in photographs of places: LDM-4, finetuned at 512 x 512, the paper's best."""
    unet = {
        "channels": 3,
        "model_channels": 256,
        "channel_mult": [1, 2, 3, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [8, 4, 2],
        "concat_channels": 4,
        "num_heads": 8,
        "resblock_updown": True,
    }
    hidden = {"channels": 3, "order": ["latent", "mask"], "mask_range": [-1.0, 1.0], "hole": -1.0}
    results: dict[str, Value] = {"FID": 1.50, "LPIPS": 0.137, "setting": "Places, 512 x 512, 30,000 crops, all masks"}
    return Recipe(
        first_stage=first_stage("vq-f4-noattn"),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 0.0015, "end": 0.0205}),
        sources={"masked_image": Source(Part("masked-image", hidden), guided=False)},
        objective={"norm": "l1"},
        notes=notes(
            published_as="inpainting_big",
            task="inpainting",
            inputs="image=photo, mask_image=hole",
            source=f"{_SITE}/inpainting_big.zip",
            ema="beside",
            sampling=sampling(50, 512),
            null=None,
            numbers=[results, {"FID": 9.39, "LPIPS": 0.246, "setting": "the same, 40 to 50 % masked"}],
            remarks=["Masks reach the network as -1 (keep) and 1 (hole), behind the latent of the masked image."],
            unused={
                "cond_stage_model.": "the first stage once more",
                "ddim_": "tables of a sampler",
            },
        ),
    )
