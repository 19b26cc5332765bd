"""The published unconditional models: faces, bedrooms and churches at 256 x 256.

Source: Rombach et al. 2022 (arXiv 2112.10752), tables 1 and 12, and the README of its repository.
"""

from __future__ import annotations

from ldmkit.parts import Part, Recipe, Value
from ldmkit.recipes.first_stages import first_stage
from ldmkit.recipes.notes import notes, sampling

_SITE = "https://ommer-lab.com/files/latent-diffusion"


def celebahq() -> Recipe:
    """Faces of celebrities, 256 x 256: LDM-4 on CelebA-HQ."""
    scores: dict[str, Value] = {"FID": 5.11, "IS": 3.29, "precision": 0.72, "recall": 0.49}
    said = notes(
        published_as="celeba256",
        task="unconditional",
        inputs="",
        source=f"{_SITE}/celeba.zip",
        ema="beside",
        sampling=sampling(200, 256),
        null=None,
        numbers=[{**scores, "setting": "200 DDIM steps, eta 0"}],
        remarks=["The paper's table 1 gives the same FID for 500 steps."],
    )
    return _ldm_4(said)


def ffhq() -> Recipe:
    """Faces, 256 x 256: LDM-4 on FFHQ."""
    scores: dict[str, Value] = {"FID": 4.98, "IS": 4.50, "precision": 0.73, "recall": 0.50}
    said = notes(
        published_as="ffhq256",
        task="unconditional",
        inputs="",
        source=f"{_SITE}/ffhq.zip",
        ema="beside",
        sampling=sampling(200, 256, eta=1.0),
        null=None,
        numbers=[{**scores, "setting": "200 DDIM steps, eta 1"}],
    )
    return _ldm_4(said)


def lsun_beds() -> Recipe:
    """Bedrooms, 256 x 256: LDM-4 on LSUN-Bedrooms."""
    scores: dict[str, Value] = {"FID": 2.95, "IS": 2.22, "precision": 0.66, "recall": 0.48}
    said = notes(
        published_as="lsun_beds256",
        task="unconditional",
        inputs="",
        source=f"{_SITE}/lsun_bedrooms.zip",
        ema="beside",
        sampling=sampling(200, 256, eta=1.0),
        null=None,
        numbers=[{**scores, "setting": "200 DDIM steps, eta 1"}],
    )
    return _ldm_4(said)


def lsun_churches() -> Recipe:
    """Churches, 256 x 256: LDM-8 on LSUN-Churches, whose file brings the scale of its latents."""
    scores: dict[str, Value] = {"FID": 4.02, "IS": 2.72, "precision": 0.64, "recall": 0.52}
    unet = {
        "channels": 4,
        "model_channels": 192,
        "channel_mult": [1, 2, 2, 4, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [1, 2, 4, 8],
        "num_heads": 8,
        "resblock_updown": True,
        "scale_shift_norm": True,
    }
    return Recipe(
        first_stage=first_stage("kl-f8"),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 0.0015, "end": 0.0155}),
        objective={"norm": "l1"},
        notes=notes(
            published_as="lsun_churches256",
            task="unconditional",
            inputs="",
            source=f"{_SITE}/lsun_churches.zip",
            ema="beside",
            sampling=sampling(400, 256),
            null=None,
            numbers=[{**scores, "setting": "400 DDIM steps, eta 0"}],
            remarks=[
                "The scale of its latents was measured when it was trained and is in the file as scale_factor: the "
                "scale of 1 in the recipe is replaced by it.",
                "The paper gives the same FID for 200 steps (table 1), and 4.48 for 200 steps with eta 0 (figure 30).",
            ],
        ),
    )


def _ldm_4(said: dict[str, Value]) -> Recipe:
    """One architecture for three data sets."""
    unet = {
        "channels": 3,
        "model_channels": 224,
        "channel_mult": [1, 2, 3, 4],
        "num_res_blocks": 2,
        "attention_resolutions": [8, 4, 2],
        "head_channels": 32,
    }
    return Recipe(
        first_stage=first_stage("vq-f4"),
        backbone=Part("unet", unet),
        process=Part("vp", {"start": 0.0015, "end": 0.0195}),
        notes=said,
    )
