"""A model folder of diffusers as a model of ours.

The configurations become a recipe, the recipe a model, and every tensor of the folder is accounted for before one is
copied: names and shapes are compared with networks that were built without memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from ldmkit.errors import CheckpointError
from ldmkit.first_stages.kl import KL
from ldmkit.first_stages.vq import VQ
from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Part, Recipe, Source, Value
from ldmkit.registry import build_part
from ldmkit.weights.diffusers.first_stage import first_stage_part
from ldmkit.weights.diffusers.folder import Folder, found
from ldmkit.weights.diffusers.layouts import COMPONENTS, Layout, layout, told
from ldmkit.weights.diffusers.names import Names, Shape, autoencoder_names, current, unet_names
from ldmkit.weights.diffusers.schedule import schedule
from ldmkit.weights.diffusers.text import UNUSED, text_names, text_part
from ldmkit.weights.diffusers.unet import unet_part
from ldmkit.weights.native import without_initialisation

TEXT = "text"
"""The source that reads prompts."""

TEXT_DROP = 0.1
"""How often training drops the text: Stable Diffusion 1's rate. A folder does not say."""


@dataclass(frozen=True)
class _Read:
    """A folder, read: its recipe, and which of its folders hold which part of the model."""

    recipe: Recipe
    place: Layout


def import_diffusers(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> LatentDiffusion:
    """Read a model folder in the layout of diffusers, in eval mode.

    Args:
        folder: the folder; or a hub id, ``owner/name``, which is downloaded where no such folder exists.
        device: where to put the model.
        dtype: of the backbone and conditioners; None keeps what the files hold, or the widest of it. The first stage
            is float32.
        revision: of a hub id: branch, tag or commit.
        variant: which precision of the weights: ``fp16`` reads ``*.fp16.safetensors``.

    Returns:
        The model. :func:`read_diffusers_recipe` says what else the folder holds: its sampler's levels, its size.

    Raises:
        FileNotFoundError: neither a folder nor a hub id.
        CheckpointError: a pipeline, class or option that has no place here, files that are damaged or lead out of the
            folder, or tensors that are missing, unexpected, of another shape or not finite; the message names them.
        UnknownComponentError: the text encoder needs ldmkit-transformers, which is not installed.
    """
    source = found(folder, revision, variant, COMPONENTS)
    read = _read(source, with_tokenizer=True)
    names = _networks(source, read)
    try:
        with without_initialisation():
            model = compose(read.recipe)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the configurations in {source.root} do not build: {error}") from error
    if read.place.text is not None:
        names[read.place.text] = _text_names(source, read, model)
    for component, home in _homes(read.place).items():
        precise = torch.float32 if component == read.place.first_stage else dtype
        _fill(
            model.get_submodule(home),
            names[component],
            source.tensors(component),
            f"{source.root / component}",
            precise,
        )
    return model.to(device).eval()


def read_diffusers_recipe(
    folder: str | os.PathLike[str], *, revision: str | None = None, variant: str | None = None
) -> Recipe:
    """The recipe of a model folder; its weights are not read.

    Args:
        folder: as of :func:`import_diffusers`.
        revision: as there.
        variant: as there.

    Returns:
        The recipe, with these notes: ``source`` (pipeline and sampler), ``sampling`` (height and width in pixels),
        ``levels`` (the keywords of :class:`~.schedule.Spacing`), and ``clip``, the bound to which the folder's sampler
        clips x0, or null.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`import_diffusers`.
    """
    return _read(found(folder, revision, variant, COMPONENTS), with_tokenizer=False).recipe


def _read(folder: Folder, with_tokenizer: bool) -> _Read:
    """The recipe of a folder; ``with_tokenizer`` says in it where the tokenizer is to be read from."""
    index = folder.json("model_index.json")
    pipeline, place = layout(index)
    stage = first_stage_part(f"{place.first_stage}/config.json", folder.json(place.first_stage, "config.json"))
    unet_words = folder.json("unet", "config.json")
    unet = unet_part("unet/config.json", unet_words)
    said = schedule("scheduler/scheduler_config.json", folder.json("scheduler", "scheduler_config.json"))
    noised = place.told == "noised_low_res"
    low_res = folder.json("low_res_scheduler", "scheduler_config.json") if noised else None
    factor = 2 ** (len(stage.options["channel_mult"]) - 1)
    if place.scale is not None:
        stage = Part(stage.name, {**stage.options, "scale": place.scale})
    spacing = said.spacing if place.offset is None else replace(said.spacing, offset=place.offset)
    notes: dict[str, Value] = {
        "source": {
            "pipeline": pipeline,
            "sampler": str(folder.json("scheduler", "scheduler_config.json")["_class_name"]),
        },
        "sampling": _size(unet_words.get("sample_size"), factor),
        "levels": spacing.to_json(),
        "clip": said.clip if place.clips else None,
    }
    sources = {**_text(folder, place, with_tokenizer), **told(place, index, unet, factor, low_res)}
    return _Read(Recipe(stage, unet, said.process, said.prediction, sources, notes=notes), place)


def _size(sample_size: object, factor: int) -> dict[str, Value]:
    """Height and width in pixels, where the folder says them."""
    sides = sample_size if isinstance(sample_size, list) else [sample_size] * 2
    known = len(sides) == 2 and all(type(side) is int for side in sides)
    return {name: factor * side for name, side in zip(("height", "width"), sides, strict=True)} if known else {}


def _text(folder: Folder, place: Layout, with_tokenizer: bool) -> dict[str, Source]:
    if place.text is None:
        return {}
    words = folder.json(place.text, "config.json")
    tokenizer = folder.root / "tokenizer"
    if not tokenizer.is_dir():  # a reader of tokenizers would take the name for a hub id
        raise CheckpointError(f"{folder.root} has no folder 'tokenizer', which its text encoder needs")
    part = text_part(
        f"{place.text}/config.json", words, folder.shapes(place.text), tokenizer if with_tokenizer else None
    )
    return {TEXT: Source(part, drop=TEXT_DROP)}


def _homes(place: Layout) -> dict[str, str]:
    """Folder -> the module of the model whose tensors it holds."""
    homes = {place.first_stage: "first_stage", "unet": "denoiser.backbone"}
    return homes if place.text is None else {**homes, place.text: f"conditioner.sources.{TEXT}"}


def _networks(folder: Folder, read: _Read) -> dict[str, Names]:
    """Folder -> names of the two networks, whose tensors in the folder are the right ones; nothing is allocated."""
    try:
        with torch.device("meta"):
            stage = cast(KL | VQ, build_part("first-stage", read.recipe.first_stage))
            unet = build_part("backbone", read.recipe.backbone)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the configurations in {folder.root} do not build: {error}") from error
    names = {read.place.first_stage: autoencoder_names(stage), "unet": unet_names(unet)}
    for module, component in ((stage, read.place.first_stage), (unet, "unet")):
        _account(f"{folder.root / component}", names[component], module, folder.shapes(component))
    return names


def _text_names(folder: Folder, read: _Read, model: LatentDiffusion) -> Names:
    component, part = cast(str, read.place.text), read.recipe.sources[TEXT].part
    module = model.get_submodule(f"conditioner.sources.{TEXT}")
    shapes = {name: shape for name, shape in folder.shapes(component).items() if name not in UNUSED}
    names = text_names(part, module.state_dict(), shapes)
    _account(f"{folder.root / component}", names, module, shapes)
    return names


def _account(where: str, names: Names, module: nn.Module, shapes: Mapping[str, Shape]) -> None:
    """Refuse a file that lacks tensors, has further ones, or has them in other shapes.

    Raises:
        CheckpointError: the message lists them.
    """
    given = {current(name): shape for name, shape in shapes.items()}
    expected: dict[str, Shape] = {}
    ours = module.state_dict()
    for key, entry in names.items():
        like = torch.empty(ours[key].shape, device="meta")
        expected |= {name: tuple(value.shape) for name, value in entry.give(like).items()}
    wrong = [f"missing {name}" for name in expected.keys() - given.keys()]
    wrong += [f"unexpected {name}" for name in given.keys() - expected.keys()]
    wrong += [
        f"{name}: {given[name]} in the file, {shape} in the model"
        for name, shape in expected.items()
        if name in given and _bare(given[name]) != _bare(shape)
    ]
    if wrong:
        more = f", and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise CheckpointError(
            f"the tensors of {where} do not fit its config.json: {'; '.join(sorted(wrong)[:20])}{more}"
        )


def _bare(shape: Shape) -> Shape:
    """A shape without the trailing ones that tell a 1 x 1 convolution from a linear map."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _fill(
    module: nn.Module, names: Names, tensors: Mapping[str, Tensor], where: str, dtype: torch.dtype | None
) -> None:
    """Give a module the tensors of its folder."""
    theirs = {current(name): value for name, value in tensors.items()}
    ours = module.state_dict()
    if bad := sorted(name for name, value in theirs.items() if not bool(value.isfinite().all())):
        raise CheckpointError(f"{where} has weights that are not finite: {bad[:20]}")
    # One precision for all: networks do not compute in several.
    wanted = dtype or reduce(torch.promote_types, {value.dtype for value in theirs.values()})
    state = {key: entry.take(theirs, tuple(ours[key].shape)).to(wanted) for key, entry in names.items()}
    module.load_state_dict(state, strict=False, assign=True)
