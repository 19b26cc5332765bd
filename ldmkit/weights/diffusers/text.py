"""The text encoders: their configurations as options of the plug-in's conditioners, and back.

===================  ===============  ======================================================================
class there          component here   from
===================  ===============  ======================================================================
``CLIPTextModel``    ``clip-text``    Stable Diffusion 1; Stable Diffusion 2, whose last layer was left out
``LDMBertModel``     ``bert-text``    latent diffusion's text-to-image model
===================  ===============  ======================================================================

Both components are those of the distribution ldmkit-transformers. Their tokenizers are read by it, from the folder;
what this module writes is the plain vocabulary that such a folder has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ldmkit.errors import CheckpointError, CompositionError
from ldmkit.parts import Part
from ldmkit.weights.diffusers.names import Names, Shape, bert_names, clip_names
from ldmkit.weights.diffusers.words import Words, count, number

CLIP_WORDS = (
    *("attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_factor"),
    *("initializer_range", "intermediate_size", "layer_norm_eps", "max_position_embeddings", "num_attention_heads"),
    *("num_hidden_layers", "pad_token_id", "projection_dim", "vocab_size"),
)
CLIP_SIZES: Words = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
}
BERT: Words = {
    "vocab_size": 30522,
    "max_position_embeddings": 77,
    "encoder_layers": 32,
    "encoder_ffn_dim": 5120,
    "encoder_attention_heads": 8,
    "head_dim": 64,
    "d_model": 1280,
    "activation_function": "gelu",
    "scale_embedding": False,
}
START, END = "<|startoftext|>", "<|endoftext|>"


def text_part(where: str, given: Words, shapes: Mapping[str, Shape], tokenizer: Path | None) -> Part:
    """The conditioner of a text encoder's configuration.

    Args:
        where: the configuration's file, for messages.
        given: its words.
        shapes: of the tensors beside it.
        tokenizer: the folder of the tokenizer; None: the part as it is written down.

    Raises:
        CheckpointError: another class, a value that has no place here, or tensors of other sizes.
    """
    builders = {"CLIPTextModel": _clip_part, "CLIPTextModelWithProjection": _clip_part, "LDMBertModel": _bert_part}
    classes = given.get("architectures") or []
    known = [name for name in builders if isinstance(classes, list) and name in classes]
    if not known:
        raise CheckpointError(f"{where} is of class {classes!r:.80}; ldmkit knows {sorted(builders)} there")
    part = builders[known[0]](where, given, shapes)
    return Part(part.name, {**part.options, **({} if tokenizer is None else {"tokenizer": str(tokenizer)})})


def _clip_part(where: str, given: Words, shapes: Mapping[str, Shape]) -> Part:
    sizes = {word: count(where, {**CLIP_SIZES, **given}, word) for word in CLIP_SIZES}
    prefix = clip_prefix(shapes)
    _agree(
        where,
        shapes,
        {
            f"{prefix}embeddings.token_embedding.weight": (sizes["vocab_size"], sizes["hidden_size"]),
            f"{prefix}embeddings.position_embedding.weight": (sizes["max_position_embeddings"], sizes["hidden_size"]),
            f"{prefix}encoder.layers.{sizes['num_hidden_layers'] - 1}.mlp.fc1.weight": (
                sizes["intermediate_size"],
                sizes["hidden_size"],
            ),
        },
    )
    config = {word: given[word] for word in CLIP_WORDS if word in given}
    for word, value in config.items():
        if not isinstance(value, str | int | None):
            number(where, config, word)
    return Part("clip-text", {"config": config})


def clip_prefix(shapes: Mapping[str, Shape]) -> str:
    """``text_model.`` before the names of a CLIP's tensors, or nothing as the latest transformers writes them."""
    return "text_model." if any(name.startswith("text_model.") for name in shapes) else ""


def _bert_part(where: str, given: Words, shapes: Mapping[str, Shape]) -> Part:
    words = {**BERT, **given}
    width, depth = count(where, words, "d_model"), count(where, words, "encoder_layers")
    only = {"activation_function": "gelu", "scale_embedding": False, "encoder_ffn_dim": 4 * width}
    for word, value in only.items():
        if words[word] != value:
            raise CheckpointError(f"{where} says {word}={words[word]!r:.80}; conditioner 'bert-text' has {value!r}")
    options = {
        "width": width,
        "depth": depth,
        "heads": count(where, words, "encoder_attention_heads"),
        "head_width": count(where, words, "head_dim"),
        "length": count(where, words, "max_position_embeddings"),
        "vocabulary": count(where, words, "vocab_size"),
    }
    inner = options["heads"] * options["head_width"]
    expected = {
        "model.embed_tokens.weight": (options["vocabulary"], width),
        "model.embed_positions.weight": (options["length"], width),
        f"model.layers.{depth - 1}.self_attn.q_proj.weight": (inner, width),
    }
    _agree(where, shapes, expected)
    return Part("bert-text", options)


def _agree(where: str, shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Compare sizes with tensors before a network of those sizes is built."""
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise CheckpointError(f"{where} describes '{name}' of shape {shape}; beside it is {shapes.get(name)}")


def text_names(part: Part, keys: Mapping[str, Any], shapes: Mapping[str, Shape] | None = None) -> Names:
    """The names of a text conditioner's tensors.

    Args:
        part: the conditioner.
        keys: its state dict.
        shapes: of the tensors in the folder; None: as diffusers' own folders have them.
    """
    if part.name.partition("@")[0] == "bert-text":
        return bert_names(int(part.options["depth"]))
    return clip_names(keys, "text_model." if shapes is None else clip_prefix(shapes))


UNUSED = ("text_model.embeddings.position_ids", "embeddings.position_ids", "text_projection.weight")
"""Tensors of a text encoder's file that hold nothing the conditioner needs."""


def text_config(part: Part) -> dict[str, Any]:
    """The configuration of a text conditioner.

    Raises:
        CompositionError: it has no form there.
    """
    options = part.options
    if part.name.partition("@")[0] == "bert-text":
        width = options["width"]
        return {
            "architectures": ["LDMBertModel"],
            "model_type": "ldmbert",
            "vocab_size": options["vocabulary"],
            "max_position_embeddings": options.get("length", 77),
            "encoder_layers": options["depth"],
            "encoder_ffn_dim": 4 * width,
            "encoder_attention_heads": options.get("heads", 8),
            "head_dim": options.get("head_width", 64),
            "d_model": width,
        }
    extra = {word: options[word] for word in ("context", "vector", "null_prompt") if word in options}
    if extra:
        raise CompositionError(
            f"conditioner 'clip-text' with {extra} has no form in diffusers: its pipelines read the last layer of the "
            "text encoder and compare with the empty prompt"
        )
    return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **options["config"]}


def write_tokenizer(folder: Path, name: str, data: bytes, length: int) -> None:
    """Write a tokenizer of the ``tokenizers`` library in the files of its model's own tokenizer.

    Args:
        folder: where; it is made.
        name: the conditioner: ``clip-text`` or ``bert-text``.
        data: its JSON.
        length: tokens of every prompt.

    Raises:
        CompositionError: the conditioner has no tokenizer, or one of another kind.
    """
    kinds: dict[str, tuple[str, Callable[[Path, dict[str, Any]], dict[str, Any]]]] = {
        "clip-text": ("BPE", _write_pieces),
        "bert-text": ("WordPiece", _write_words),
    }
    kind, write = kinds[name]
    tokenizer = json.loads(data) if data else {"model": {}}
    if tokenizer["model"].get("type", kind if "vocab" in tokenizer["model"] else None) != kind:
        raise CompositionError(f"conditioner '{name}' has no {kind} tokenizer: give it one with read_tokenizer first")
    folder.mkdir()
    padding = tokenizer.get("padding") or {}
    words = {**write(folder, tokenizer), "model_max_length": length, "pad_token": padding.get("pad_token")}
    write_json(folder / "tokenizer_config.json", words)


def _write_pieces(folder: Path, tokenizer: dict[str, Any]) -> dict[str, Any]:
    model = tokenizer["model"]
    write_json(folder / "vocab.json", model["vocab"])
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), "utf-8")
    return {"tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END, "unk_token": END}


def _write_words(folder: Path, tokenizer: dict[str, Any]) -> dict[str, Any]:
    vocabulary = tokenizer["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join([*sorted(vocabulary, key=vocabulary.__getitem__), ""]), "utf-8")
    lower = bool((tokenizer.get("normalizer") or {}).get("lowercase", True))
    return {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}


def write_json(path: Path, data: Any) -> None:  # noqa: ANN401 - what JSON holds
    """Write JSON as people read it."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
