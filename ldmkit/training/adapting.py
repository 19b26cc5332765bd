"""A published model, recomposed for a condition it was not trained with.

>>> model = with_sources(ldmkit.load("text-to-image.safetensors"), {"hole": masked_image})

The backbone is built again with room for what the new conditioners give, every weight of the old one is copied, and the
columns of the first convolution that read the new channels start at zero: before any training the new model makes the
images of the old one, whatever the new condition says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from ldmkit.composition import label_of, part_of
from ldmkit.conditioning import Conditioner, Joint
from ldmkit.denoiser import Backbone
from ldmkit.errors import CompositionError
from ldmkit.model import LatentDiffusion
from ldmkit.parts import Part
from ldmkit.registry import build_part


def with_sources(
    model: LatentDiffusion,
    sources: Mapping[str, Conditioner],
    drop: Mapping[str, float] | None = None,
    guided: Sequence[str] | None = None,
) -> LatentDiffusion:
    """The model with further conditioners, or others under the names of its own.

    Args:
        model: composed before; its first stage, process and the conditioners that stay are shared, not copied.
        sources: name -> conditioner; channels of new ones come after those there are.
        drop: name -> dropout rate in training; names not given keep theirs, new ones have 0.
        guided: the sources that guidance drops; None: those it dropped before.

    Returns:
        A new model, in training mode as the old one was. Where new channels come in, the first convolution is widened
        by zeros; every other tensor of the backbone is a copy.

    Raises:
        CompositionError: the conditioners need more of the backbone than channels (another width of context, a label
            where there was none), or it has no keyword ``concat_channels`` to ask for them.
    """
    old = model.conditioner
    kept = {} if old is None else old.conditioners()
    joint = Joint(
        {**kept, **sources},
        drop={**({} if old is None else old.drop), **(drop or {})},
        guided=(() if old is None else old.guided) if guided is None else guided,
    )
    backbone = widened(model.backbone, joint.provides.get("concat", 0))
    new = LatentDiffusion(
        first_stage=model.stage,
        backbone=backbone,
        process=model.process,
        prediction=model.denoiser.prediction,
        conditioner=joint,
        objective=model.objective,
    )
    new.elbo = model.elbo  # where the model is
    return new.train(model.training)


def widened(backbone: Backbone, concat_channels: int) -> Backbone:
    """The backbone with so many channels of concat, the new ones read with weight zero.

    Args:
        backbone: a component with the keyword ``concat_channels``; itself where it has as many.
        concat_channels: at least as many as it has.

    Raises:
        CompositionError: fewer channels than it has, or a backbone that cannot be built with others.
    """
    had = backbone.accepts.get("concat", 0)
    if concat_channels == had:
        return backbone
    part = part_of("backbone", backbone)
    if concat_channels < had or "concat_channels" not in vars(backbone):
        raise CompositionError(
            f"backbone {label_of(backbone)} reads {had} channels of concat and cannot be widened to {concat_channels}: "
            "a widened backbone has the keyword concat_channels and reads more than before"
        )
    wide: Backbone = build_part("backbone", Part(part.name, {**part.options, "concat_channels": concat_channels}))
    old, new = cast(nn.Module, backbone), cast(nn.Module, wide)
    entry = next(old.parameters())
    new.to(entry.device, entry.dtype).train(old.training)
    was = old.state_dict()
    new.load_state_dict({name: _grown(name, value, was[name]) for name, value in new.state_dict().items()})
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(old.get_parameter(name).requires_grad)
    return wide


def _grown(name: str, new: Tensor, was: Tensor) -> Tensor:
    """The old tensor, with zeros where the new one reads more channels."""
    if was.shape == new.shape:
        return was
    if was.ndim != 4 or new.shape[1] < was.shape[1] or new[:, :1].shape != was[:, :1].shape:
        raise CompositionError(f"'{name}' is {tuple(was.shape)} and would be {tuple(new.shape)}: that is not widening")
    grown = torch.zeros_like(new)
    grown[:, : was.shape[1]] = was
    return grown


def trainable(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let the parameters whose names fit a pattern be trained, and freeze all others.

    Args:
        module: a model or a part of one.
        patterns: shell patterns of names, such as ``denoiser.backbone.*.attn2.*``.

    Returns:
        The names of the parameters that are trained now.

    Raises:
        ValueError: a pattern fits no parameter.
    """
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no parameter fits {pattern!r}; there are {names[:3]} ... {names[-1:]}")
    chosen = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
        chosen += [name] if parameter.requires_grad else []
    return chosen
