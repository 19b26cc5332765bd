"""The entry point: names and where they live. Imports neither torch nor timm."""

from ldmkit import hookimpl
from ldmkit.registry import Register


@hookimpl
def ldmkit_register(register: Register) -> None:
    """Offer the conditioner and the backbone."""
    register.conditioner("timm-image", "ldmkit_timm.image:TimmImage")
    register.backbone("dit", "ldmkit_timm.dit:DiT")
