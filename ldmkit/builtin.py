"""Every built-in component: kind, name and where it lives. Nothing here is imported before it is built or described.

The table enters the registry through the same hook as any plug-in's.
"""

from ldmkit.registry import Register, hookimpl

TABLE: dict[str, dict[str, str]] = {
    "first-stage": {
        "kl": "ldmkit.first_stages.kl:KL",
        "vq": "ldmkit.first_stages.vq:VQ",
        "pixel": "ldmkit.first_stages.pixel:Pixel",
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
    },
    "guidance": {
        "none": "ldmkit.guidance:NoGuidance",
        "cfg": "ldmkit.guidance:CFG",
    },
    "task": {
        "unconditional": "ldmkit.tasks.unconditional:Unconditional",
        "class-conditional": "ldmkit.tasks.class_conditional:ClassConditional",
    },
    "recipe": {
        "digits": "ldmkit.recipes.digits:digits",
    },
}


@hookimpl
def ldmkit_register(register: Register) -> None:
    """Offer the table."""
    for kind, components in TABLE.items():
        for name, factory in components.items():
            register.add(kind, name, factory)
