"""OpenCLIP's networks: either half of a CLIP, with random weights or with those of a file or a published tag.

An architecture is a name of OpenCLIP's own table (``ViT-H-14``) or, in its words, what such an entry holds::

    {"embed_dim": 16, "text_cfg": {"width": 32, "heads": 2, "layers": 2}, "vision_cfg": {...}}

Weights come from a file of OpenCLIP (its ``.pt``, ``.bin`` or ``.safetensors``, with both halves or one) or from a tag
such as ``laion2b_s32b_b79k``, which OpenCLIP downloads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ldmkit import CheckpointError
from open_clip import CLIP, download_pretrained, get_model_config, get_pretrained_cfg, list_models, list_pretrained
from open_clip.factory import load_state_dict
from torch import Tensor, nn

Architecture: TypeAlias = str | Mapping[str, Any]

WORDS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias"}
"""What an architecture may say; others belong to networks that are not CLIP."""

NO_VISION = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}
NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}


def described(architecture: Architecture, halves: Collection[str], owner: str) -> dict[str, Any]:
    """The entry of an architecture.

    Args:
        architecture: a name, or the entry itself.
        halves: of ``text_cfg`` and ``vision_cfg``, those that it must have.
        owner: the component's registered name, for messages.

    Raises:
        ValueError: an unknown name, or an entry that is not CLIP's.
    """
    if isinstance(architecture, str) and architecture not in list_models():
        raise ValueError(f"'{owner}': OpenCLIP has no architecture '{architecture}'; it has {list_models()}")
    entry = get_model_config(architecture) if isinstance(architecture, str) else dict(architecture)
    unknown, missing = sorted(set(entry) - WORDS), sorted({"embed_dim", *halves} - set(entry))
    if unknown or missing:
        raise ValueError(f"'{owner}': '{architecture}' is no architecture of a CLIP: {unknown=}, {missing=}")
    return entry


def text_half(architecture: Architecture, owner: str) -> CLIP:
    """A CLIP without its image tower, under the names of Stable Diffusion 2.

    Raises:
        ValueError: as :func:`described`, or the text tower reads other words than CLIP's.
    """
    model = _clip({**described(architecture, ["text_cfg"], owner), "vision_cfg": NO_VISION}, owner)
    del model.visual
    return model


def image_half(architecture: Architecture, owner: str) -> Any:  # noqa: ANN401 - OpenCLIP's towers share no class
    """The image tower of a CLIP.

    Raises:
        ValueError: as :func:`described`.
    """
    return _clip({**described(architecture, ["vision_cfg"], owner), "text_cfg": NO_TEXT}, owner).visual


def both_halves(architecture: Architecture, owner: str) -> CLIP:
    """A whole CLIP.

    Raises:
        ValueError: as :func:`described`, or the text tower reads other words than CLIP's.
    """
    return _clip(described(architecture, ["text_cfg", "vision_cfg"], owner), owner)


def _clip(entry: Mapping[str, Any], owner: str) -> CLIP:
    text = entry["text_cfg"]
    if other := sorted({"hf_model_name", "hf_tokenizer_name", "tokenizer_mode", "embed_cls"} & set(text)):
        raise ValueError(
            f"'{owner}' reads CLIP's own words, and the text tower of this architecture does not ({', '.join(other)}): "
            "choose another"
        )
    vision = {**entry["vision_cfg"], "timm_model_pretrained": False}
    return CLIP(entry["embed_dim"], vision, text, quick_gelu=entry.get("quick_gelu", False))


def published(architecture: Architecture, source: str, owner: str) -> dict[str, Any]:
    """What OpenCLIP records of a tag; empty where ``source`` is a file.

    Raises:
        TypeError: ``source`` is not a string.
        ValueError: neither a file nor a tag of the architecture, or a tag whose activation is another one.
    """
    if not isinstance(source, str):
        raise TypeError(f"'{owner}' takes source as a string, got {type(source).__name__}: pass str(path)")
    if Path(source).is_file():
        return {}
    record = get_pretrained_cfg(architecture, source) if isinstance(architecture, str) else {}
    if not record:
        tags = [tag for name, tag in list_pretrained() if name == architecture]
        raise ValueError(f"'{owner}': '{source}' is neither a file nor a tag of '{architecture}'; its tags are {tags}")
    quick = bool(described(architecture, [], owner).get("quick_gelu", False))
    if bool(record.get("quick_gelu", False)) != quick:
        other = f"{architecture}-quickgelu" if not quick else str(architecture).removesuffix("-quickgelu")
        raise ValueError(f"'{owner}': the weights '{source}' were trained with another activation: use '{other}'")
    return dict(record)


def read(architecture: Architecture, source: str, owner: str) -> dict[str, Tensor]:
    """The tensors of a file or tag, under CLIP's names whatever the layout.

    Raises:
        ValueError: as :func:`published`.
    """
    record = published(architecture, source, owner)
    tensors: dict[str, Tensor] = load_state_dict(download_pretrained(record) if record else source)
    return {name.removeprefix("text."): tensor for name, tensor in tensors.items()}


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: str, owner: str) -> None:
    """Copy tensors in by name; others, those of the half that is not here, are left out.

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    want = model.state_dict()
    wrong = sorted(name for name, value in want.items() if name not in tensors or tensors[name].shape != value.shape)
    if wrong:
        raise CheckpointError(
            f"'{owner}': '{source}' does not hold these weights: {len(wrong)} of {len(want)} tensors are missing or of "
            f"another shape, such as {wrong[:3]}"
        )
    model.load_state_dict({name: tensors[name] for name in want})
