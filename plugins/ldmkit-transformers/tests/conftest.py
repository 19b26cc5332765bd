"""Small networks and tokenizers, written as their authors write them: no test reads anything that is not made here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when transformers is imported

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizerFast,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.utils import logging

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "##s", "on", "the", "moon")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ("<pad>", "</s>", "<unk>", "▁", "▁a", "▁red", "▁cat", "s", "▁on", "▁the", "▁moon")

logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def known_randomness():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def write_vocabulary(path):
    """A vocabulary file of BERT: one word per line."""
    path.write_text("\n".join(WORDS))


def letters():
    """A tokenizer of CLIP that knows the letters and one word."""
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizerFast(vocab={word: n for n, word in enumerate(words)}, merges=[("c", "a"), ("ca", "t</w>")])


def pieces():
    """A tokenizer of T5."""
    return T5TokenizerFast(vocab=[(piece, -float(n)) for n, piece in enumerate(PIECES)], extra_ids=0)


BERT = {
    "vocab_size": len(WORDS),
    "max_position_embeddings": 20,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {
    "vocab_size": 56,
    "hidden_size": 32,
    "intermediate_size": 48,
    "projection_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "bos_token_id": 54,
    "eos_token_id": 55,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "projection_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
T5 = {
    "vocab_size": len(PIECES) + 5,
    "feed_forward_proj": "gated-gelu",
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "num_layers": 2,
    "num_heads": 2,
}


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    write_vocabulary(path)
    return path


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    BertModel(BertConfig(**BERT)).save_pretrained(path)
    BertTokenizerFast(vocab={word: n for n, word in enumerate(WORDS)}).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def clip_tokenizer():
    return letters()


@pytest.fixture(scope="session")
def clip_config():
    return TEXT


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory, clip_tokenizer):
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(2)
    CLIPTextModelWithProjection(CLIPTextConfig(**TEXT)).save_pretrained(path)
    clip_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def clip_image_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip-image")
    torch.manual_seed(3)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    torch.manual_seed(4)
    T5EncoderModel(T5Config(**T5)).save_pretrained(path)
    pieces().save_pretrained(path)
    return path
