"""BERT's words: with the transformer of latent diffusion, and with BERT itself."""

import pytest
import torch
from ldmkit import CheckpointError
from ldmkit.conditioners import Tokens
from transformers import BertConfig, BertModel

from ldmkit_transformers.bert import Bert, BertText, bert_tokenizer

BATCH = {"prompt": ["a red cat", "dogs on the moon"]}


@pytest.fixture
def text(vocabulary):
    return BertText(16, 2, heads=2, head_width=8, length=10, tokenizer=str(vocabulary))


def test_the_context_is_the_token_transformer_on_berts_ids(text, vocabulary):
    tokens = Tokens(vocabulary=13, length=10, width=16, depth=2, heads=2, head_width=8)
    tokens.load_state_dict({key: value for key, value in text.state_dict().items() if key.startswith("transformer.")})
    ids = bert_tokenizer(str(vocabulary))(BATCH["prompt"], padding="max_length", max_length=10, return_tensors="pt")
    cond = text(BATCH)
    assert torch.equal(cond.context, tokens({"tokens": ids["input_ids"]}).context)
    assert cond.context_mask is None


def test_the_published_text_to_image_model_fits_by_name(vocabulary):
    with torch.device("meta"):
        text = BertText(1280, 32, vocabulary=30522)
    shapes = {key: tuple(value.shape) for key, value in text.named_parameters()}
    assert len(shapes) == 422
    assert shapes["transformer.token_emb.weight"] == (30522, 1280)
    assert shapes["transformer.pos_emb.emb.weight"] == (77, 1280)
    assert shapes["transformer.attn_layers.layers.63.1.net.2.weight"] == (1280, 5120)
    assert shapes["transformer.attn_layers.layers.0.1.to_q.weight"] == (512, 1280)


def test_the_null_is_the_empty_prompt(text):
    null, empty = text.null(BATCH), text({"prompt": ["", ""]})
    torch.testing.assert_close(null.context, empty.context)


def test_it_is_trained_with_the_model_unless_frozen(text, vocabulary):
    assert any(p.requires_grad for p in text.parameters())
    assert text.train().training
    frozen = BertText(16, 1, tokenizer=str(vocabulary), frozen=True).train()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(module.training for module in frozen.modules())


def test_the_vocabulary_is_the_tokenizers_unless_given(text, vocabulary):
    assert text.vocabulary == 13
    assert BertText(16, 1, vocabulary=20, tokenizer=str(vocabulary)).vocabulary == 20
    with pytest.raises(ValueError, match="tokenizer has 13 words and the network embeddings for 12"):
        BertText(16, 1, vocabulary=12, tokenizer=str(vocabulary))
    with pytest.raises(ValueError, match="needs a tokenizer, or vocabulary="):
        BertText(16, 1)


@pytest.fixture
def bert(bert_folder):
    return Bert(str(bert_folder), length=10)


def test_berts_context_is_its_last_hidden_state_under_its_mask(bert, bert_folder):
    theirs = BertModel.from_pretrained(bert_folder, add_pooling_layer=False)
    tokens = bert_tokenizer(str(bert_folder))(BATCH["prompt"], padding="max_length", max_length=10, return_tensors="pt")
    cond = bert(BATCH)
    torch.testing.assert_close(cond.context, theirs(**tokens).last_hidden_state)
    assert torch.equal(cond.context_mask, tokens["attention_mask"].bool())


def test_berts_tokens_do_not_depend_on_the_amount_of_padding(bert_folder):
    short, long = (Bert(str(bert_folder), length=length)(BATCH) for length in (7, 15))
    kept = short.context_mask
    torch.testing.assert_close(short.context[kept], long.context[:, :7][kept])
    assert long.context_mask.sum() == kept.sum()


def test_berts_null_is_the_empty_prompt_with_its_mask(bert):
    null, empty = bert.null(BATCH), bert({"prompt": ["", ""]})
    torch.testing.assert_close(null.context, empty.context)
    assert torch.equal(null.context_mask, empty.context_mask)


def test_bert_is_frozen_or_trained_as_asked(bert, bert_folder):
    bert.train()
    assert not any(p.requires_grad for p in bert.parameters())
    assert not any(module.training for module in bert.modules())
    trained = Bert(str(bert_folder), length=10, frozen=False).train()
    trained(BATCH).context.sum().backward()
    assert all(p.grad is not None for p in trained.parameters())
    assert all(module.training for module in trained.modules())


def test_random_weights_need_only_the_architecture_in_berts_words(vocabulary):
    words = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = Bert(config=words, tokenizer=str(vocabulary), length=8)
    assert bert(BATCH).context.shape == (2, 8, 8)
    assert bert.config == words


def test_what_bert_read_is_described_by_its_configuration(bert):
    again = Bert(config=bert.config, length=10)
    again.load_state_dict(bert.state_dict())
    assert torch.equal(again(BATCH).context, bert(BATCH).context)


def test_a_place_with_another_network_is_refused(tmp_path, bert_folder):
    config = BertConfig.from_pretrained(bert_folder)
    other = BertModel(config, add_pooling_layer=False)
    del other.encoder.layer[1]
    other.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'bert': '.*' lacks 16 tensors of BertModel"):
        Bert(str(tmp_path), tokenizer=str(bert_folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of source"),
        ({"source": "x", "config": {}}, "exactly one of source"),
        ({"config": {"hiden_size": 8}}, r"unknown words \['hiden_size'\] in config"),
        (
            {"config": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}, "length": 600},
            "512 positions",
        ),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Bert(**options)


def test_a_path_object_is_refused_because_a_file_could_not_name_it(bert_folder):
    with pytest.raises(TypeError, match="takes source as a string, got PosixPath"):
        Bert(bert_folder)


def test_its_names_are_those_of_the_published_files_and_its_words_come_after(vocabulary, text):
    file = {f"cond_stage_model.{name}": value for name, value in text.named_parameters()}
    assert "cond_stage_model.transformer.attn_layers.layers.3.1.net.0.0.weight" in file
    bare = BertText(16, 2, heads=2, head_width=8, length=10, vocabulary=13)
    filled = {name.removeprefix("cond_stage_model."): value for name, value in file.items()}
    assert bare.load_state_dict(filled, strict=False).unexpected_keys == []
    with pytest.raises(RuntimeError, match=r"'bert-text' has no tokenizer.* read_tokenizer"):
        bare(BATCH)
    bare.read_tokenizer(str(vocabulary))
    assert torch.equal(bare(BATCH).context, text(BATCH).context)
