"""The entry point: names and where they live. Imports neither torch nor transformers."""

from ldmkit import hookimpl
from ldmkit.registry import Register


@hookimpl
def ldmkit_register(register: Register) -> None:
    """Offer the conditioners."""
    register.conditioner("bert-text", "ldmkit_transformers.bert:BertText")
    register.conditioner("bert", "ldmkit_transformers.bert:Bert")
    register.conditioner("clip-text", "ldmkit_transformers.clip_text:ClipText")
    register.conditioner("clip-image", "ldmkit_transformers.clip_image:ClipImage")
    register.conditioner("t5-text", "ldmkit_transformers.t5:T5Text")
