"""The laws of a conditioner, for every one that this distribution offers."""

import atexit
import tempfile
from pathlib import Path

import torch
from conftest import BERT, T5, TEXT, VISION, letters, pieces, write_vocabulary
from ldmkit.testing import Example, conformance

_TEMPORARY = tempfile.TemporaryDirectory(prefix="ldmkit-transformers-")
atexit.register(_TEMPORARY.cleanup)
FOLDER = Path(_TEMPORARY.name)
WORDS, LETTERS, PIECES = (str(FOLDER / name) for name in ("vocab.txt", "letters", "pieces"))
write_vocabulary(Path(WORDS))
letters().save_pretrained(LETTERS)
pieces().save_pretrained(PIECES)

SMALL = {"width": 16, "depth": 2, "heads": 2, "head_width": 8, "length": 9, "tokenizer": WORDS}


def prompts(n):
    """Prompts of different lengths."""
    return {"prompt": ["a red cat", "cats", "on the moon", "dog"][:n]}


def images(n):
    """Images that differ from each other and are not of the network's size."""
    return {"image": torch.rand(n, 3, 20, 12) * 2 - 1}


test_bert_text = conformance(
    Example("conditioner", "bert-text", SMALL, "trained", batch=prompts),
    Example("conditioner", "bert-text", {**SMALL, "frozen": True, "vocabulary": 20}, "frozen", batch=prompts),
)
test_bert = conformance(
    Example("conditioner", "bert", {"config": BERT, "tokenizer": WORDS, "length": 9}, "frozen", batch=prompts),
    Example(
        "conditioner",
        "bert",
        {"config": BERT, "tokenizer": WORDS, "length": 9, "frozen": False},
        "trained",
        batch=prompts,
    ),
)
test_clip_text = conformance(
    Example("conditioner", "clip-text", {"config": TEXT, "tokenizer": LETTERS}, "last", batch=prompts),
    Example(
        "conditioner",
        "clip-text",
        {"config": TEXT, "tokenizer": LETTERS, "context": "penultimate", "vector": "projected", "frozen": False},
        "trained",
        batch=prompts,
    ),
    Example(
        "conditioner",
        "clip-text",
        {"config": TEXT, "tokenizer": LETTERS, "context": "embedding", "null_prompt": None},
        "embedding",
        batch=prompts,
    ),
)
test_clip_image = conformance(
    Example("conditioner", "clip-image", {"config": VISION, "vector": "projected"}, "vector", batch=images),
    Example(
        "conditioner",
        "clip-image",
        {"config": VISION, "context": "penultimate", "vector": "pooled", "frozen": False},
        "trained",
        batch=images,
    ),
)
test_t5_text = conformance(
    Example("conditioner", "t5-text", {"config": T5, "tokenizer": PIECES, "length": 9}, "masked", batch=prompts),
    Example(
        "conditioner",
        "t5-text",
        {"config": T5, "tokenizer": PIECES, "length": 9, "masked": False, "frozen": False},
        "trained",
        batch=prompts,
    ),
)
