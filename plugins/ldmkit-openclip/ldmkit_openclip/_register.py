"""The entry point: names and where they live. Imports neither torch nor open_clip."""

from ldmkit import hookimpl
from ldmkit.registry import Register


@hookimpl
def ldmkit_register(register: Register) -> None:
    """Offer the conditioners and the guidance."""
    register.conditioner("openclip-text", "ldmkit_openclip.text:OpenClipText")
    register.conditioner("openclip-image", "ldmkit_openclip.image:OpenClipImage")
    register.guidance("clip-guidance", "ldmkit_openclip.guidance:clip_guidance")
