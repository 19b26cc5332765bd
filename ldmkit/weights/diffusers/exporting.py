"""A model of ours as a model folder of diffusers, where it has a form there.

A model has one if its network, first stage and process have, and if what it is told is what one of the pipelines tells:
see :mod:`~ldmkit.weights.diffusers.layouts`. The folder appears complete under its name or not at all.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from ldmkit.backbones.unet import UNet
from ldmkit.composition import label_of
from ldmkit.errors import CompositionError
from ldmkit.first_stages.kl import KL
from ldmkit.first_stages.vq import VQ
from ldmkit.model import LatentDiffusion
from ldmkit.parts import Source
from ldmkit.weights.diffusers.first_stage import first_stage_config
from ldmkit.weights.diffusers.layouts import LAYOUTS, UPSCALER, low_res_words, pipeline_of
from ldmkit.weights.diffusers.names import Names, autoencoder_names, unet_names
from ldmkit.weights.diffusers.schedule import schedule_config
from ldmkit.weights.diffusers.text import text_config, text_names, write_json, write_tokenizer
from ldmkit.weights.diffusers.unet import unet_config

TOKENIZER = "prompt_tokenizer._extra_state"
"""Where the plug-in's text conditioners keep their tokenizer."""

_TEXT = {
    "clip-text": ("text_encoder", ("transformers", "CLIPTextModel"), ("transformers", "CLIPTokenizer")),
    "bert-text": ("bert", ("latent_diffusion", "LDMBertModel"), ("transformers", "BertTokenizer")),
}
VERSION = "0.42.1"
"""The version of diffusers whose layout is written; some of its pipelines do not load without one."""

_NOTHING = (None, None)
_OPTIONAL = {
    **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), _NOTHING),
    "requires_safety_checker": False,
}
_ABSENT: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": _OPTIONAL,
    "StableDiffusionInpaintPipeline": _OPTIONAL,
    UPSCALER: dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"), _NOTHING),
}
"""Components that a pipeline may do without, and wants to be told so."""


@dataclass(frozen=True)
class _Component:
    """One folder: its name, the library and class that read it, its words, and its tensors if it has any."""

    name: str
    home: tuple[str, str]
    words: Mapping[str, Any]
    tensors: dict[str, Tensor] | None = None

    def write(self, root: Path) -> None:
        """Write the folder below ``root``."""
        folder = root / self.name
        folder.mkdir()
        if self.tensors is None:
            write_json(folder / "scheduler_config.json", self.words)
            return
        write_json(folder / "config.json", self.words)
        stem = "diffusion_pytorch_model" if self.home[0] == "diffusers" else "model"
        save_file(self.tensors, folder / f"{stem}.safetensors", {"format": "pt"})


def export_diffusers(model: LatentDiffusion, folder: str | os.PathLike[str], sample_size: int | None = None) -> None:
    """Write a model as a folder that diffusers loads, and :func:`~.importing.import_diffusers`.

    Its sampler there is DDIM over :func:`ldmkit.process.uniform`, the levels it has here.

    Args:
        model: the model.
        folder: where; it must not exist yet.
        sample_size: the side of the latent that diffusers draws unless told otherwise; None: as many cells as the
            first stage makes of an image of its ``resolution``.

    Raises:
        FileExistsError: the folder exists.
        CompositionError: the model has no form there; the message names the part.
        OSError: the folder cannot be written; nothing is left of it.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it first, or choose another name")
    sources = model.recipe().sources
    pipeline, text = pipeline_of(sources), next((name for name, source in sources.items() if _is_text(source)), None)
    components = [*_networks(model, pipeline, sample_size), *_told(model, sources, text)]
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.mkdir(parents=True)
        for component in components:
            component.write(partial)
        if text is not None:
            _write_tokenizer(partial / "tokenizer", model, sources[text], text)
        write_json(partial / "model_index.json", _index(pipeline, components, sources, text))
        _sync(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _name(source: Source) -> str:
    return source.part.name.partition("@")[0]


def _is_text(source: Source) -> bool:
    return _name(source) in _TEXT


def _networks(model: LatentDiffusion, pipeline: str, sample_size: int | None) -> Iterator[_Component]:
    """First stage, backbone and the process."""
    stage, unet = model.first_stage, cast(nn.Module, model.backbone)
    if not isinstance(stage, KL | VQ) or not isinstance(unet, UNet):
        raise CompositionError(
            f"first stage {label_of(stage)} with backbone {label_of(unet)} has no form in diffusers: it has first "
            "stages 'kl' and 'vq' and backbone 'unet'"
        )
    place = LAYOUTS[pipeline]
    if place.scale is not None and abs(float(stage.scale) - place.scale) > 1e-6:
        raise CompositionError(
            f"first stage {label_of(stage)} scales latents by {float(stage.scale):g}, and {pipeline} by {place.scale}, "
            "whatever the first stage says: this model cannot be written for diffusers"
        )
    words = first_stage_config(stage)
    yield _Component(
        place.first_stage, ("diffusers", words["_class_name"]), words, _renamed(stage, autoencoder_names(stage))
    )
    side = max(stage.resolution // stage.factor, 1) if sample_size is None else sample_size
    words = unet_config(unet, side)
    yield _Component("unet", ("diffusers", words["_class_name"]), words, _renamed(unet, unet_names(unet)))
    words = schedule_config(model.process, model.denoiser.prediction)
    yield _Component("scheduler", ("diffusers", words["_class_name"]), words)


def _told(model: LatentDiffusion, sources: Mapping[str, Source], text: str | None) -> Iterator[_Component]:
    """The text encoder, and the process of the low-resolution image's noise."""
    if text is not None:
        part, module = sources[text].part, model.get_submodule(f"conditioner.sources.{text}")
        folder, home, _ = _TEXT[_name(sources[text])]
        yield _Component(folder, home, text_config(part), _renamed(module, text_names(part, module.state_dict())))
    for source in sources.values():
        if _name(source) == "noised-low-res":
            yield _Component("low_res_scheduler", ("diffusers", "DDPMScheduler"), low_res_words(source.part))


def _renamed(module: nn.Module, names: Names) -> dict[str, Tensor]:
    """The tensors of a module under diffusers' names; what is only named differently is not copied."""
    state = module.state_dict()
    given = {name: value for key, entry in names.items() for name, value in entry.give(state[key]).items()}
    return {name: value.detach().cpu().contiguous() for name, value in given.items()}


def _index(
    pipeline: str, components: list[_Component], sources: Mapping[str, Source], text: str | None
) -> dict[str, Any]:
    """``model_index.json``."""
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": VERSION}
    index |= {one.name: one.home for one in components}
    if text is not None:
        index["tokenizer"] = _TEXT[_name(sources[text])][2]
    if pipeline == UPSCALER:
        levels = [source.part.options for source in sources.values() if _name(source) == "noised-low-res"]
        index["max_noise_level"] = levels[0].get("trained_below", 350)
    return {**index, **_ABSENT.get(pipeline, {})}


def _write_tokenizer(folder: Path, model: LatentDiffusion, source: Source, name: str) -> None:
    data = model.get_submodule(f"conditioner.sources.{name}").state_dict()[TOKENIZER]
    length = source.part.options.get("config", source.part.options)
    words = {"length": 77, **length}
    write_tokenizer(
        folder, _name(source), data.numpy().tobytes(), words.get("max_position_embeddings", words["length"])
    )


def _sync(root: Path) -> None:
    """Have every file and folder on the disk before the folder gets its name."""
    for path in (*root.rglob("*"), root):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
