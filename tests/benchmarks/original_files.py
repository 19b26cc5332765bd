"""Files of the original with random weights, the words and inputs that go with them, and published models made narrow.

A file holds what the model's publisher put into one: the network twice where its notes say so, tables of the schedule,
a first stage once more where it was the conditioner, and parts that have no place here. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import ldmkit
from ldmkit.model import LatentDiffusion
from ldmkit.parts import Part, Recipe, Source
from ldmkit.pipelines import Output
from ldmkit.process import VP
from ldmkit.weights.importing import ReadsTokenizer
from ldmkit.weights.native import without_initialisation
from ldmkit.weights.original import original_names

WIDTH = 32
"""Of the first level of every narrow network, and of the context that a narrow encoder gives."""

CLIP = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "projection_dim": WIDTH}
ENCODERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "class-label": lambda options: {"width": WIDTH},
    "bert-text": lambda options: {"width": WIDTH, "depth": 2},
    "layout": lambda options: {"width": WIDTH, "depth": 2},
    "clip-text": lambda options: {
        "config": {**options["config"], **CLIP, "num_hidden_layers": 2, "num_attention_heads": 2}
    },
    "openclip-text": lambda options: {
        "architecture": {
            "embed_dim": WIDTH,
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2},
        }
    },
}
"""Encoder of a context -> what makes it narrow; others stay as they are."""

STAGE_TWICE = ("bsr-sr", "inpainting-big")
"""Models whose file holds the first stage once more, as the conditioner."""

EXTRAS: Mapping[str, Mapping[str, Tensor]] = {
    "lsun-churches": {"scale_factor": torch.tensor(0.22)},
    "sd-1": {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]},
    "sd-1-inpainting": {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]},
    "sd-2-depth": {"depth_model.model.scratch.weight": torch.ones(3, 3)},
    "sd-x4-upscaler": {"low_scale_model.betas": torch.ones(1000)},
    "sd-2-unclip-h": {"embedder.model.visual.proj": torch.ones(3, 3), "noise_augmentor.betas": torch.ones(1000)},
    "sd-2-unclip-l": {"embedder.visual_projection.weight": torch.ones(3, 3), "noise_augmentor.betas": torch.ones(1000)},
}
"""Model -> tensors of its file that are no weights of the composition, or stand for those that are not."""


def narrow(recipe: Recipe) -> Recipe:
    """The same structure at small widths.

    Networks begin with 32 channels and at most double them, have one residual block per level and heads of at most 16
    channels; text towers are 2 layers of width 32, and so is the context. Numbers of levels, classes, tokens and
    channels of images, latents and conditions stay.
    """
    sources = {name: replace(source, part=_narrow_source(source)) for name, source in recipe.sources.items()}
    unet = {**_narrow(recipe.backbone.options), "model_channels": WIDTH}
    if any(source.part.name in ENCODERS for source in sources.values()):
        unet["context_dim"] = WIDTH
    if "head_channels" in unet:
        unet["head_channels"] = min(16, unet["head_channels"])
    stage = {**_narrow(recipe.first_stage.options), "base_channels": WIDTH}
    return replace(
        recipe,
        first_stage=Part(recipe.first_stage.name, stage),
        backbone=Part(recipe.backbone.name, unet),
        sources=sources,
    )


def write(name: str, recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write a ``.ckpt`` of random weights, as the original's training or its publisher did.

    Args:
        name: of the published model, which says what else its file holds.
        recipe: the model's, or a narrow one.
        path: the file.
    """
    with without_initialisation():
        model = recipe.build()
    ours, generator = model.state_dict(), torch.Generator().manual_seed(0)
    # Only the shapes of these tensors have a meaning: their memory was never touched.
    shapes = {theirs: ours[own].shape for own, theirs in original_names(model).items()}
    if recipe.notes["ema"] == "beside":
        shapes |= {theirs: ours[own].shape for own, theirs in original_names(model, ema=True).items()}
    state = {theirs: _drawn(theirs, shape, generator) for theirs, shape in shapes.items()}
    if recipe.notes["ema"] == "beside":
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1000)}
    if name in STAGE_TWICE:
        stage = {theirs: value for theirs, value in state.items() if theirs.startswith("first_stage_model.")}
        state |= {f"cond_stage_model.{theirs.removeprefix('first_stage_model.')}": stage[theirs] for theirs in stage}
    process = cast(VP, model.process)
    tables = {"betas": process.beta.float(), "alphas_cumprod": process.alpha_bar.float()}
    torch.save({"state_dict": {**tables, **state, **EXTRAS.get(name, {})}, "global_step": 1000}, path)


def read_words(recipe: Recipe, model: LatentDiffusion, folder: Path) -> None:
    """Fill the tokenizers that no file brings, with a few words that are written into ``folder`` for that."""
    sources = {} if model.conditioner is None else model.conditioner.conditioners()
    for name, source in sources.items():
        if isinstance(source, ReadsTokenizer):
            source.read_tokenizer(str(VOCABULARIES[recipe.sources[name].part.name](folder)))


def sampled(recipe: Recipe, model: LatentDiffusion, side: int, steps: int = 2) -> Output:
    """Images of a published model's task, called as its notes say, but for the size and the number of steps.

    Args:
        recipe: with the notes.
        model: composed by it.
        side: height and width of the images, in pixels.
        steps: of the sampler.

    Returns:
        The images (1, 3, side, side) in [0, 1] as a tensor, with their latents.
    """
    notes: Mapping[str, Any] = recipe.notes
    said = {key: value for key, value in notes["sampling"].items() if key not in ("steps", "height", "width")}
    inputs = eval(f"dict({notes['inputs']})", pictures(side, recipe))
    pipe = ldmkit.pipeline(notes["task"], model)
    return pipe(**inputs, **said, height=side, width=side, num_inference_steps=steps, output_type="pt", progress=False)


def published_side(recipe: Recipe) -> int:
    """The height, in pixels, that a published model was trained on."""
    said = cast(Mapping[str, int], recipe.notes["sampling"])
    return said["height"]


def pictures(side: int, recipe: Recipe) -> dict[str, object]:
    """The names that notes use in ``inputs``: pictures, masks, maps and embeddings, drawn or constant."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    hole = np.zeros((side, side), np.uint8)
    hole[side // 4 : side // 2] = 255
    embedding = torch.nn.functional.normalize(torch.randn(1, _embedding(recipe), generator=torch.Generator()), dim=-1)
    return {
        "photo": photo,
        "hole": Image.fromarray(hole),
        "small": photo.resize((side // 4, side // 4)),
        "labels": rng.integers(0, 182, (side, side)),
        "depth": rng.random((side, side)),
        "embedding": embedding,
    }


def write_bert_words(folder: Path) -> Path:
    """A vocabulary file of BERT."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photograph", "of", "lighthouse"]))
    return path


def write_clip_words(folder: Path) -> Path:
    """A folder with a tokenizer of CLIP that knows the letters."""
    from transformers import CLIPTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizerFast(vocab={word: n for n, word in enumerate(words)}, merges=[]).save_pretrained(folder / "clip")
    return folder / "clip"


VOCABULARIES: Mapping[str, Callable[[Path], Path]] = {"bert-text": write_bert_words, "clip-text": write_clip_words}


def _narrow(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fewer channels per level, and one residual block."""
    mult: Sequence[int] = options["channel_mult"]
    return {**options, "channel_mult": [min(2, factor) for factor in mult], "num_res_blocks": 1}


def _narrow_source(source: Source) -> Part:
    part = source.part
    change = ENCODERS[part.name](part.options) if part.name in ENCODERS else {}
    return Part(part.name, {**part.options, **change})


def _embedding(recipe: Recipe) -> int:
    """The width of the embedding that a model is given; 1 where it is given none."""
    sizes = [source.part.options.get("size") for source in recipe.sources.values()]
    return next((size for size in sizes if isinstance(size, int)), 1)


def _drawn(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Weights that keep activations about where they are: by fan-in, norms about 1, biases small."""
    value = torch.randn(shape, generator=generator)
    if value.ndim >= 2:
        return value.mul_(value[0].numel() ** -0.5)
    return value.mul_(0.1) if name.endswith("bias") else value.mul_(0.1).add_(1)
