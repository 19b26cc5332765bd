"""Prompts to ids: as the published tokenizers do it, from data that a file can carry."""

import copy
import pickle
import warnings

import pytest
import torch
from ldmkit import CheckpointError
from transformers import BertTokenizerFast, CLIPTokenizerFast, T5TokenizerFast

from ldmkit_transformers.bert import bert_tokenizer
from ldmkit_transformers.prompts import PromptTokenizer, TruncationWarning, prompts_of

PROMPTS = ["a red cat", "", "The CATS, on the moon!", "cats <|endoftext|> moon"]


@pytest.fixture
def families(bert_folder, clip_folder, t5_folder):
    return [(BertTokenizerFast, bert_folder), (CLIPTokenizerFast, clip_folder), (T5TokenizerFast, t5_folder)]


def filled(tokenizer, length=12):
    prompts = PromptTokenizer(length, "test")
    prompts.take(tokenizer)
    return prompts


def test_ids_and_mask_are_those_of_transformers(families):
    for family, folder in families:
        theirs = family.from_pretrained(folder)
        want = theirs(PROMPTS, padding="max_length", truncation=True, max_length=40, return_tensors="pt")
        ids, mask = filled(theirs, 40)(PROMPTS)
        assert torch.equal(ids, want["input_ids"])
        assert torch.equal(mask, want["attention_mask"].bool())


def test_a_prompt_that_is_cut_still_ends_as_the_model_expects(families):
    for family, folder in families:
        theirs = family.from_pretrained(folder)
        want = theirs("cat " * 30, padding="max_length", truncation=True, max_length=8)["input_ids"]
        with pytest.warns(TruncationWarning):
            ids = filled(theirs, 8)(["cat " * 30]).ids
        assert ids.tolist() == [want]


def test_a_cut_prompt_is_reported_with_the_number_of_tokens_it_loses(vocabulary):
    prompts = filled(bert_tokenizer(str(vocabulary)), 6)
    with pytest.warns(TruncationWarning, match=r"reads 6 tokens; cut off: 1 of prompt 1 \(a red.*, 6 of prompt 2"):
        prompts(["a cat", "a red cat on moon", "cat " * 10])


def test_prompts_that_fit_are_not_reported(vocabulary):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled(bert_tokenizer(str(vocabulary)), 6)(["a red cats", ""])


def test_a_vocabulary_file_gives_the_published_layout(vocabulary):
    ids, mask = filled(bert_tokenizer(str(vocabulary)), 7)(["A red cats"])
    assert ids.tolist() == [[2, 5, 6, 7, 9, 3, 0]]
    assert mask.tolist() == [[True] * 6 + [False]]


def test_a_vocabulary_is_split_at_line_feeds_alone(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "\u2028", "\u0085", "cat"]) + "\n", "utf-8"
    )
    assert filled(bert_tokenizer(str(path)), 5)(["a cat"]).ids.tolist() == [[2, 5, 8, 3, 0]]


def test_the_state_is_bytes_that_make_the_same_tokenizer(families):
    for family, folder in families:
        first = filled(family.from_pretrained(folder))
        state = first.state_dict()["_extra_state"]
        assert state.dtype == torch.uint8
        again = PromptTokenizer(12, "test")
        again.load_state_dict({"_extra_state": state})
        assert torch.equal(again(PROMPTS[:1]).ids, first(PROMPTS[:1]).ids)
        assert torch.equal(again.state_dict()["_extra_state"], state)


def test_an_empty_tokenizer_has_a_state_too():
    empty = PromptTokenizer(12, "test")
    again = PromptTokenizer(12, "test")
    again.load_state_dict(empty.state_dict())
    with pytest.raises(RuntimeError, match="'test' has no tokenizer: build it with tokenizer="):
        again(["cat"])


def test_copies_and_pickles_tokenize_alike(vocabulary):
    prompts = filled(bert_tokenizer(str(vocabulary)))
    for other in (copy.deepcopy(prompts), pickle.loads(pickle.dumps(prompts))):
        assert torch.equal(other(["a cat"]).ids, prompts(["a cat"]).ids)


def test_bytes_that_are_no_tokenizer_are_refused():
    with pytest.raises(CheckpointError, match="'test': its tokenizer cannot be read"):
        PromptTokenizer(12, "test").set_extra_state(torch.tensor([1, 2, 3], dtype=torch.uint8))


def test_a_tokenizer_of_another_length_is_refused(vocabulary):
    state = filled(bert_tokenizer(str(vocabulary)), 12).get_extra_state()
    with pytest.raises(CheckpointError, match=r"reads 9 tokens; the tokenizer in the file pads and cuts to \(12, 12\)"):
        PromptTokenizer(9, "test").set_extra_state(state)


@pytest.mark.parametrize("family", [BertTokenizerFast, CLIPTokenizerFast, T5TokenizerFast])
def test_a_folder_without_a_vocabulary_is_refused(family, tmp_path):
    with pytest.raises(ValueError, match="'test' found no vocabulary in"):
        filled(family.from_pretrained(tmp_path))


@pytest.mark.parametrize("wrong", ["a cat", ["a", 3], None, torch.zeros(2)])
def test_anything_but_a_list_of_strings_is_refused(wrong):
    with pytest.raises(TypeError, match=r"conditioner 'test' reads batch\['prompt'\] as a list of strings"):
        prompts_of({"prompt": wrong}, "test")
