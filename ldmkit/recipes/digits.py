"""The bundled model of handwritten digits: a small KL first stage (f = 4) and a class-conditional UNet."""

from ldmkit.parts import Part, Recipe, Source


def digits() -> Recipe:
    """32 x 32 grey images of the classes 0 to 9, with classifier-free guidance."""
    return Recipe(
        first_stage=Part(
            "kl",
            {
                "channels": 1,
                "base_channels": 32,
                "channel_mult": [1, 1, 2],
                "num_res_blocks": 1,
                "resolution": 32,
                "image_channels": 1,
            },
        ),
        backbone=Part(
            "unet",
            {
                "channels": 1,
                "model_channels": 64,
                "channel_mult": [1, 1],
                "num_res_blocks": 1,
                "attention_resolutions": [2],
                "num_heads": 2,
                "context_dim": 64,
                "dropout": 0.1,
            },
        ),
        process=Part("vp", {"betas": "cosine"}),
        prediction="v",
        sources={"digit": Source(Part("class-label", {"classes": 10, "width": 64}), drop=0.1)},
    )
