"""The transformer over token ids."""

import pytest
import torch

from ldmkit.conditioners import Tokens, TokenTransformer

TINY = {"vocabulary": 20, "length": 6, "width": 8, "depth": 2, "heads": 2, "head_width": 4}
EMPTY = (1, 2, 0, 0, 0, 0)
TOKENS = torch.tensor([[1, 7, 8, 2, 0, 0], [1, 19, 2, 0, 0, 0]])


def test_one_context_vector_per_token():
    assert Tokens(**TINY)({"tokens": TOKENS}).context.shape == (2, 6, 8)


def test_null_is_the_encoded_empty_prompt():
    conditioner = Tokens(**TINY, null_tokens=EMPTY)
    empty = conditioner({"tokens": torch.tensor([EMPTY, EMPTY])}).context
    torch.testing.assert_close(conditioner.null({"tokens": TOKENS}).context, empty)


def test_without_an_empty_prompt_there_is_no_null_and_the_message_says_why():
    with pytest.raises(ValueError, match="null_tokens"):
        Tokens(**TINY).null({"tokens": TOKENS})


@pytest.mark.parametrize("null_tokens", [(1, 2), (1, 2, 0, 0, 0, 20), (-1, 2, 0, 0, 0, 0)])
def test_an_empty_prompt_of_another_length_or_vocabulary_is_refused(null_tokens):
    with pytest.raises(ValueError, match="6 ids in"):
        Tokens(**TINY, null_tokens=null_tokens)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS[:, :5], r"\(B, 6\), got \(2, 5\)"),
        (TOKENS[0], r"got \(6,\)"),
        (TOKENS.float(), "integers"),
        (TOKENS + 1, r"\[0, 19\].*20"),
        (TOKENS - 1, "-1"),
    ],
)
def test_tokens_of_another_shape_type_or_vocabulary_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        Tokens(**TINY)({"tokens": tokens})


def test_padding_is_attended_as_in_training():
    conditioner = Tokens(**TINY)
    other_padding = TOKENS.clone()
    other_padding[:, -1] = 9
    assert not torch.allclose(
        conditioner({"tokens": TOKENS}).context[:, 0], conditioner({"tokens": other_padding}).context[:, 0]
    )


def test_the_order_of_tokens_matters_and_only_through_positions():
    transformer = TokenTransformer(20, 6, 8, 2, 2, 4)
    torch.nn.init.zeros_(transformer.pos_emb.emb.weight)
    torch.testing.assert_close(transformer(TOKENS.flip(1)), transformer(TOKENS).flip(1))


def test_the_unused_head_is_frozen_and_changes_nothing():
    conditioner = Tokens(**TINY)
    before = conditioner({"tokens": TOKENS}).context
    assert not any(parameter.requires_grad for parameter in conditioner.transformer.to_logits.parameters())
    torch.nn.init.ones_(conditioner.transformer.to_logits.weight)
    assert torch.equal(conditioner({"tokens": TOKENS}).context, before)


def test_the_inner_width_belongs_to_the_heads():
    attention = Tokens(20, 6, 8, 1).transformer.attn_layers.layers[0][1]
    assert attention.to_q.weight.shape == (512, 8)
    assert attention.to_out.weight.shape == (8, 512)


@pytest.mark.parametrize("size", ["vocabulary", "length", "width", "depth", "heads", "head_width"])
def test_sizes_below_one_are_refused(size):
    with pytest.raises(ValueError, match=f"'{size}': 0"):
        Tokens(**{**TINY, size: 0})
