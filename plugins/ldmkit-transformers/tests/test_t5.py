"""T5's encoder, with padding hidden or read."""

import pytest
import torch
from transformers import T5EncoderModel, T5TokenizerFast

from ldmkit_transformers.t5 import T5Text

BATCH = {"prompt": ["a red cats", "moon"]}


@pytest.fixture
def tokens(t5_folder):
    tokenizer = T5TokenizerFast.from_pretrained(t5_folder)
    return tokenizer(BATCH["prompt"], padding="max_length", max_length=9, return_tensors="pt")


@pytest.fixture
def published(t5_folder):
    return T5EncoderModel.from_pretrained(t5_folder)


def test_the_masked_context_is_the_encoders_under_its_mask(t5_folder, tokens, published):
    cond = T5Text(str(t5_folder), length=9)(BATCH)
    torch.testing.assert_close(cond.context, published(**tokens).last_hidden_state)
    assert torch.equal(cond.context_mask, tokens["attention_mask"].bool())


def test_the_unmasked_context_is_the_encoders_on_all_tokens(t5_folder, tokens, published):
    cond = T5Text(str(t5_folder), length=9, masked=False)(BATCH)
    torch.testing.assert_close(cond.context, published(tokens["input_ids"]).last_hidden_state)
    assert cond.context_mask is None


def test_masked_tokens_do_not_depend_on_the_amount_of_padding(t5_folder):
    short, long = (T5Text(str(t5_folder), length=length)(BATCH) for length in (6, 14))
    kept = short.context_mask
    torch.testing.assert_close(short.context[kept], long.context[:, :6][kept])


def test_the_names_are_those_of_the_encoder(t5_folder, published):
    names = {name for name, _ in T5Text(str(t5_folder)).named_parameters()}
    assert names == {f"transformer.{name}" for name, _ in published.named_parameters()}


def test_the_null_is_the_empty_prompt(t5_folder):
    for masked in (True, False):
        text = T5Text(str(t5_folder), length=9, masked=masked)
        null, empty = text.null(BATCH).filled(), text({"prompt": ["", ""]}).filled()
        assert null.keys() == empty.keys()
        for slot, value in null.items():
            torch.testing.assert_close(value, empty[slot])


def test_it_stays_frozen_and_in_eval_mode(t5_folder):
    text = T5Text(str(t5_folder)).train()
    assert not any(p.requires_grad for p in text.parameters())
    assert not any(module.training for module in text.modules())
    assert all(p.requires_grad for p in T5Text(str(t5_folder), frozen=False).parameters())


def test_random_weights_need_only_the_architecture_in_t5s_words(t5_folder):
    words = {"vocab_size": 11, "d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
    text = T5Text(config=words, tokenizer=str(t5_folder), length=5)
    assert text.provides == {"context": 8}
    assert text(BATCH).context.shape == (2, 5, 8)


def test_a_tokenizer_that_needs_another_library_says_which(tmp_path, t5_folder):
    (tmp_path / "spiece.model").write_bytes(b"nothing that can be read")
    with pytest.raises(ImportError, match=r"pip install 'ldmkit-transformers\[spiece\]'"):
        T5Text(str(t5_folder), tokenizer=str(tmp_path))
