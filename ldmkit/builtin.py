"""Every built-in component: kind, name and where it lives. Nothing here is imported before it is built or described.

The table enters the registry through the same hook as any plug-in's.
"""

from ldmkit.registry import Register, hookimpl

TABLE: dict[str, dict[str, str]] = {
    "first-stage": {
        "kl": "ldmkit.first_stages.kl:KL",
        "vq": "ldmkit.first_stages.vq:VQ",
        "pixel": "ldmkit.first_stages.pixel:Pixel",
        "tiled": "ldmkit.first_stages.tiled:Tiled",
        "tiled-exact": "ldmkit.first_stages.exact:TiledExact",
    },
    "backbone": {
        "unet": "ldmkit.backbones.unet:UNet",
    },
    "conditioner": {
        "class-label": "ldmkit.conditioners.label:ClassLabel",
        "class-index": "ldmkit.conditioners.label:ClassIndex",
        "tokens": "ldmkit.conditioners.text:Tokens",
        "layout": "ldmkit.conditioners.layout:Layout",
        "semantic-map": "ldmkit.conditioners.spatial:SemanticMap",
        "low-res": "ldmkit.conditioners.spatial:LowRes",
        "masked-image": "ldmkit.conditioners.spatial:MaskedImage",
        "precomputed": "ldmkit.conditioners.precomputed:Precomputed",
        "depth": "ldmkit.conditioners.depth:Depth",
        "noised-low-res": "ldmkit.conditioners.noised_low_res:NoisedLowRes",
        "noised-embedding": "ldmkit.conditioners.noised_embedding:NoisedEmbedding",
    },
    "process": {
        "vp": "ldmkit.process:VP",
        "rectified-flow": "ldmkit.process:RectifiedFlow",
        "edm": "ldmkit.process:EDM",
    },
    "sampler": {
        "ddpm": "ldmkit.samplers.ddpm:DDPM",
        "ddim": "ldmkit.samplers.ddim:DDIM",
        "plms": "ldmkit.samplers.plms:PLMS",
        "euler": "ldmkit.samplers.euler:Euler",
        "euler-ancestral": "ldmkit.samplers.euler:EulerAncestral",
        "heun": "ldmkit.samplers.heun:Heun",
        "dpmpp-2m": "ldmkit.samplers.dpmpp:DPMPP2M",
        "dpmpp-2s": "ldmkit.samplers.dpmpp:DPMPP2S",
        "dpmpp-2m-sde": "ldmkit.samplers.dpmpp:DPMPP2MSDE",
        "unipc": "ldmkit.samplers.unipc:UniPC",
        "ddim-inversion": "ldmkit.samplers.ddim_inversion:DDIMInversion",
    },
    "guidance": {
        "none": "ldmkit.guidance.cfg:NoGuidance",
        "cfg": "ldmkit.guidance.cfg:CFG",
        "cfg-piecewise": "ldmkit.guidance.cfg:PiecewiseCFG",
        "rescale": "ldmkit.guidance.rescale:Rescale",
        "dynamic-threshold": "ldmkit.guidance.rescale:DynamicThreshold",
        "interval": "ldmkit.guidance.interval:Interval",
        "autoguidance": "ldmkit.guidance.autoguidance:Autoguidance",
        "classifier": "ldmkit.guidance.gradient:ClassifierGuidance",
        "image": "ldmkit.guidance.gradient:ImageGuidance",
    },
    "task": {
        "unconditional": "ldmkit.tasks.unconditional:Unconditional",
        "class-conditional": "ldmkit.tasks.class_conditional:ClassConditional",
        "text-to-image": "ldmkit.tasks.text_to_image:TextToImage",
        "layout-to-image": "ldmkit.tasks.layout_to_image:LayoutToImage",
        "semantic-synthesis": "ldmkit.tasks.semantic_synthesis:SemanticSynthesis",
        "super-resolution": "ldmkit.tasks.super_resolution:SuperResolution",
        "inpainting": "ldmkit.tasks.inpainting:Inpainting",
        "outpainting": "ldmkit.tasks.outpainting:Outpainting",
        "image-to-image": "ldmkit.tasks.image_to_image:ImageToImage",
        "depth-to-image": "ldmkit.tasks.depth_to_image:DepthToImage",
        "embedding-to-image": "ldmkit.tasks.embedding_to_image:EmbeddingToImage",
        "image-variation": "ldmkit.tasks.embedding_to_image:ImageVariation",
    },
    "recipe": {
        "digits": "ldmkit.recipes.digits:digits",
        "celebahq": "ldmkit.recipes.unconditional:celebahq",
        "ffhq": "ldmkit.recipes.unconditional:ffhq",
        "lsun-beds": "ldmkit.recipes.unconditional:lsun_beds",
        "lsun-churches": "ldmkit.recipes.unconditional:lsun_churches",
        "cin256": "ldmkit.recipes.cross_attention:cin256",
        "cin256-v2": "ldmkit.recipes.cross_attention:cin256_v2",
        "text2img256": "ldmkit.recipes.cross_attention:text2img256",
        "txt2img-1p4b": "ldmkit.recipes.cross_attention:txt2img_1p4b",
        "layout2img-openimages256": "ldmkit.recipes.cross_attention:layout2img_openimages256",
        "rdm-768": "ldmkit.recipes.cross_attention:rdm_768",
        "semantic-synthesis256": "ldmkit.recipes.concatenation:semantic_synthesis256",
        "semantic-synthesis512": "ldmkit.recipes.concatenation:semantic_synthesis512",
        "bsr-sr": "ldmkit.recipes.concatenation:bsr_sr",
        "inpainting-big": "ldmkit.recipes.concatenation:inpainting_big",
        "sd-1": "ldmkit.recipes.stable_diffusion_1:sd_1",
        "sd-1-inpainting": "ldmkit.recipes.stable_diffusion_1:sd_1_inpainting",
        "sd-2-base": "ldmkit.recipes.stable_diffusion_2:sd_2_base",
        "sd-2-v": "ldmkit.recipes.stable_diffusion_2:sd_2_v",
        "sd-2-inpainting": "ldmkit.recipes.stable_diffusion_2:sd_2_inpainting",
        "sd-2-depth": "ldmkit.recipes.stable_diffusion_2:sd_2_depth",
        "sd-x4-upscaler": "ldmkit.recipes.stable_diffusion_2:sd_x4_upscaler",
        "sd-2-unclip-h": "ldmkit.recipes.stable_diffusion_2:sd_2_unclip_h",
        "sd-2-unclip-l": "ldmkit.recipes.stable_diffusion_2:sd_2_unclip_l",
    },
}


@hookimpl
def ldmkit_register(register: Register) -> None:
    """Offer the table."""
    for kind, components in TABLE.items():
        for name, factory in components.items():
            register.add(kind, name, factory)
