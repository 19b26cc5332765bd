"""OpenCLIP's text tower: every output equals the published model's, under the published names."""

import copy
import pickle
import warnings

import open_clip
import pytest
import torch
from conftest import TINY
from ldmkit import CheckpointError
from safetensors.torch import save_file
from torch.nn import functional as F

from ldmkit_openclip.prompts import TruncationWarning
from ldmkit_openclip.text import OpenClipText

BATCH = {"prompt": ["a cat", "", "Two red CATS!"]}


@pytest.fixture
def published(clip):
    """Everything that the published model says, computed layer by layer as Stable Diffusion 2 does."""
    ids = open_clip.tokenize(BATCH["prompt"], context_length=10)
    x = clip.token_embedding(ids) + clip.positional_embedding
    for block in clip.transformer.resblocks[:-1]:
        x = block(x, attn_mask=clip.attn_mask)
    last = clip.transformer.resblocks[-1](x, attn_mask=clip.attn_mask)
    projected = clip.encode_text(ids)
    return {
        "penultimate-norm": clip.ln_final(x),
        "penultimate": x,
        "last": clip.ln_final(last),
        "embedding": F.normalize(projected, dim=-1)[:, None],
        "projected": projected,
    }


@pytest.mark.parametrize("context", ["penultimate-norm", "penultimate", "last", "embedding"])
def test_the_context_is_the_published_models(context, weights, published):
    cond = OpenClipText(TINY, source=weights, context=context)(BATCH)
    torch.testing.assert_close(cond.context, published[context])
    assert cond.context_mask is None
    assert cond.vector is None


def test_the_vector_is_the_published_models(weights, published):
    text = OpenClipText(TINY, source=weights, context="penultimate", vector="projected")
    cond = text(BATCH)
    torch.testing.assert_close(cond.vector, published["projected"])
    torch.testing.assert_close(cond.context, published["penultimate"])
    assert text.provides == {"context": 32, "vector": 24}


def test_the_names_are_those_of_stable_diffusion_2(clip):
    names = set(OpenClipText(TINY).state_dict())
    assert names == {f"model.{name}" for name in clip.state_dict() if not name.startswith("visual.")}
    assert {
        "model.logit_scale",
        "model.positional_embedding",
        "model.transformer.resblocks.0.attn.in_proj_weight",
    } <= names


def test_stable_diffusion_2_is_the_architecture_vit_h_14():
    with torch.device("meta"):
        text = OpenClipText("ViT-H-14")
    assert text.provides == {"context": 1024}
    shapes = {name: tuple(value.shape) for name, value in text.state_dict().items()}
    assert shapes["model.positional_embedding"] == (77, 1024)
    assert shapes["model.transformer.resblocks.23.mlp.c_fc.weight"] == (4096, 1024)
    assert len(shapes) == 24 * 12 + 6


def test_the_null_is_the_empty_prompt_or_zeros(weights):
    text = OpenClipText(TINY, source=weights, vector="projected")
    null, empty = text.null(BATCH), text({"prompt": [""] * 3})
    torch.testing.assert_close(null.context, empty.context)
    torch.testing.assert_close(null.vector, empty.vector)
    zeros = OpenClipText(TINY, context="embedding", null_prompt=None).null(BATCH)
    assert torch.equal(zeros.context, torch.zeros(3, 1, 24))


def test_a_cut_prompt_is_reported_with_the_number_of_tokens_it_loses():
    text = OpenClipText(TINY)
    with pytest.warns(TruncationWarning, match=r"reads 10 tokens; cut off: 1 of prompt 1 \(cat.*, 12 of prompt 2"):
        text({"prompt": ["cat " * 8, "cat " * 9, "cat " * 20]})


def test_prompts_that_fit_are_not_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OpenClipText(TINY)({"prompt": ["cat " * 8]})


def test_it_stays_frozen_and_in_eval_mode():
    text = OpenClipText(TINY).train()
    assert not any(p.requires_grad for p in text.parameters())
    assert not any(module.training for module in text.modules())


@pytest.mark.parametrize(
    ("context", "vector"),
    [("last", None), ("penultimate", None), ("penultimate-norm", None), ("embedding", None), ("last", "projected")],
)
def test_a_trained_tower_trains_every_parameter_that_asks_for_it(context, vector):
    text = OpenClipText(TINY, context=context, vector=vector, frozen=False)
    sum(value.square().sum() for value in text(BATCH).filled().values()).backward()
    assert all((p.grad is not None and bool(p.grad.any())) == p.requires_grad for p in text.parameters())
    assert text.training


def test_copies_and_pickles_encode_alike():
    text = OpenClipText(TINY)
    context = text(BATCH).context
    for other in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert torch.equal(other(BATCH).context, context)


def test_a_file_of_the_text_half_alone_and_of_the_newer_layout_are_read_too(clip, tmp_path, published):
    half = {name: value for name, value in clip.state_dict().items() if not name.startswith("visual.")}
    newer = {name if name == "logit_scale" else f"text.{name}": value for name, value in half.items()}
    for name, tensors in {"half": half, "newer": newer}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        text = OpenClipText(TINY, source=str(tmp_path / f"{name}.safetensors"), context="last")
        torch.testing.assert_close(text(BATCH).context, published["last"])


def test_weights_of_another_network_are_refused(weights):
    wider = {**TINY, "text_cfg": {**TINY["text_cfg"], "layers": 4}}
    with pytest.raises(CheckpointError, match=r"does not hold these weights: 12 of 54 tensors"):
        OpenClipText(wider, source=weights)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("ViT-H-15", {}, "OpenCLIP has no architecture 'ViT-H-15'"),
        ("local-dir:/tmp", {}, "OpenCLIP has no architecture"),
        (
            "ViT-H-14",
            {"source": "laion"},
            r"nor a tag of 'ViT-H-14'; its tags are \['laion2b_s32b_b79k'",
        ),
        ("ViT-L-14", {"source": "openai"}, "another activation: use 'ViT-L-14-quickgelu'"),
        ("xlm-roberta-base-ViT-B-32", {}, "reads CLIP's own words"),
        ("coca_ViT-B-32", {}, "no architecture of a CLIP"),
        ({"embed_dim": 8}, {}, r"missing=\['text_cfg'\]"),
        (TINY, {"context": None}, "gives a context of"),
        (TINY, {"vector": "pooled"}, "a vector of"),
    ],
)
def test_what_cannot_be_is_refused_and_says_what_can(architecture, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        OpenClipText(architecture, **options)


@pytest.mark.parametrize("wrong", ["a cat", ["a", 3], None])
def test_anything_but_a_list_of_strings_is_refused(wrong):
    with pytest.raises(TypeError, match=r"'openclip-text' reads batch\['prompt'\] as a list of strings"):
        OpenClipText(TINY)({"prompt": wrong})


def test_it_claims_its_tensors_in_a_file_of_stable_diffusion_2_and_knows_the_rest_of_clip(clip):
    text, prefix = OpenClipText(TINY), "cond_stage_model."
    file = [f"{prefix}model.{name}" for name in (*clip.state_dict(), "attn_mask")]
    claimed = text.claims([*file, "first_stage_model.model.weight", "betas"])
    assert set(claimed) == set(file)
    assert sorted(own for own in claimed.values() if own) == sorted(text.state_dict())
    assert all(theirs == prefix + own for theirs, own in claimed.items() if own)
    assert claimed["cond_stage_model.model.attn_mask"] is None
    assert claimed["cond_stage_model.model.visual.proj"] is None


def test_it_claims_names_that_it_does_not_know_so_that_they_are_unexpected():
    assert OpenClipText(TINY).claims(["cond_stage_model.model.surprise"]) == {
        "cond_stage_model.model.surprise": "model.surprise"
    }
