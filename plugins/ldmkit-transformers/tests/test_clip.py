"""CLIP's towers: every output equals the published model's, under the published names."""

import copy
import pickle

import pytest
import torch
from conftest import VISION
from ldmkit import CheckpointError
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from ldmkit_transformers.clip_image import OPENAI_MEAN, OPENAI_STD, ClipImage, normalised
from ldmkit_transformers.clip_text import ClipText

BATCH = {"prompt": ["a cat", "cat moon", "dog <|endoftext|> x"]}


@pytest.fixture
def published(clip_folder, clip_tokenizer):
    """Everything that the published model says about the batch."""
    model = CLIPTextModelWithProjection.from_pretrained(clip_folder)
    tokens = clip_tokenizer(BATCH["prompt"], padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        out = model(tokens["input_ids"], output_hidden_states=True)
        pooled = model.text_model(tokens["input_ids"]).pooler_output
        return {
            "last": out.last_hidden_state,
            "penultimate": out.hidden_states[-2],
            "penultimate-norm": model.text_model.final_layer_norm(out.hidden_states[-2]),
            "embedding": F.normalize(out.text_embeds, dim=-1)[:, None],
            "pooled": pooled,
            "projected": out.text_embeds,
        }


@pytest.mark.parametrize("context", ["last", "penultimate", "penultimate-norm", "embedding"])
def test_the_context_is_the_published_models(context, clip_folder, published):
    cond = ClipText(str(clip_folder), context=context)(BATCH)
    torch.testing.assert_close(cond.context, published[context])
    assert cond.context_mask is None
    assert cond.vector is None


@pytest.mark.parametrize("vector", ["pooled", "projected"])
def test_the_vector_is_the_published_models(vector, clip_folder, published):
    cond = ClipText(str(clip_folder), context="penultimate", vector=vector)(BATCH)
    torch.testing.assert_close(cond.vector, published[vector])
    torch.testing.assert_close(cond.context, published["penultimate"])


@pytest.mark.parametrize("vector", ["pooled", "projected"])
def test_old_configurations_with_the_wrong_end_token_pool_alike(vector, clip_folder, published, clip_config):
    old = ClipText(config={**clip_config, "eos_token_id": 2}, tokenizer=str(clip_folder), context=None, vector=vector)
    new = ClipText(str(clip_folder), context=None, vector=vector)
    old.load_state_dict(new.state_dict())
    torch.testing.assert_close(old(BATCH).vector, published[vector])


def test_what_it_provides_is_what_it_gives(clip_folder):
    both = ClipText(str(clip_folder), context="embedding", vector="pooled")
    assert both.provides == {"context": 24, "vector": 32}
    cond = both(BATCH)
    assert cond.context.shape == (3, 1, 24)
    assert cond.vector.shape == (3, 32)


def test_the_names_are_those_of_stable_diffusion_1(clip_config, clip_folder):
    text = ClipText(config=clip_config)
    names = {name for name, _ in text.named_parameters()}
    want = {
        f"transformer.{name}"
        for name, _ in CLIPTextModelWithProjection(CLIPTextConfig(**clip_config)).named_parameters()
        if name.startswith("text_model.")
    }
    assert names == want
    assert "transformer.text_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert set(text.state_dict()) - names == {"prompt_tokenizer._extra_state"}


def test_the_null_is_the_empty_prompt_or_zeros(clip_folder):
    text = ClipText(str(clip_folder), vector="projected")
    null, empty = text.null(BATCH), text({"prompt": [""] * 3})
    torch.testing.assert_close(null.context, empty.context)
    torch.testing.assert_close(null.vector, empty.vector)
    zeros = ClipText(str(clip_folder), context="embedding", null_prompt=None).null(BATCH)
    assert torch.equal(zeros.context, torch.zeros(3, 1, 24))


def test_prompts_do_not_depend_on_their_neighbours(clip_folder):
    text = ClipText(str(clip_folder), vector="projected")
    whole = text(BATCH)
    for n, prompt in enumerate(BATCH["prompt"]):
        alone = text({"prompt": [prompt]})
        torch.testing.assert_close(whole.context[n : n + 1], alone.context)
        torch.testing.assert_close(whole.vector[n : n + 1], alone.vector)


def test_a_frozen_tower_stays_frozen_and_in_eval_mode(clip_folder):
    text = ClipText(str(clip_folder)).train()
    assert not any(p.requires_grad for p in text.parameters())
    assert not any(module.training for module in text.modules())


@pytest.mark.parametrize(
    ("context", "vector"),
    [("last", None), ("penultimate", None), ("penultimate-norm", None), ("embedding", None), ("penultimate", "pooled")],
)
def test_a_trained_tower_trains_every_parameter_that_asks_for_it(context, vector, clip_folder):
    text = ClipText(str(clip_folder), context=context, vector=vector, frozen=False)
    cond = text(BATCH)
    sum(value.square().sum() for value in cond.filled().values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in text.parameters())
    assert text.training


def test_a_used_tower_can_be_copied_and_pickled(clip_folder):
    text = ClipText(str(clip_folder), context="penultimate")
    context = text(BATCH).context
    for other in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert torch.equal(other(BATCH).context, context)


def test_weights_and_tokenizer_may_lie_apart(clip_folder, clip_config, clip_tokenizer, published, tmp_path):
    weights, tokenizer = tmp_path / "text_encoder", tmp_path / "tokenizer"
    tower = CLIPTextModel(CLIPTextConfig(**clip_config))
    tower.save_pretrained(weights)
    clip_tokenizer.save_pretrained(tokenizer)
    with pytest.raises(ValueError, match=r"found no vocabulary in .*text_encoder"):
        ClipText(str(weights))
    text = ClipText(str(weights), tokenizer=str(tokenizer))
    ids = clip_tokenizer(BATCH["prompt"], padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    torch.testing.assert_close(text(BATCH).context, tower.eval()(ids).last_hidden_state)


def test_a_projection_that_the_place_does_not_hold_is_refused(clip_config, clip_folder, tmp_path):
    CLIPTextModel(CLIPTextConfig(**clip_config)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*text_projection"):
        ClipText(str(tmp_path), tokenizer=str(clip_folder), vector="projected")


def test_a_tokenizer_of_more_words_than_embeddings_is_refused(clip_config, clip_folder):
    with pytest.raises(ValueError, match="words and the network embeddings for 20"):
        ClipText(config={**clip_config, "vocab_size": 20}, tokenizer=str(clip_folder))


@pytest.mark.parametrize(("context", "vector"), [(None, None), ("first", None), ("last", "cls")])
@pytest.mark.parametrize("family", [ClipText, ClipImage])
def test_unknown_outputs_are_refused(family, context, vector):
    with pytest.raises(ValueError, match=r"gives a context of \(.*\), a vector of \(.*\), or both"):
        family("nowhere", context=context, vector=vector)


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def image():
    return torch.rand(2, 3, 20, 28) * 2 - 1


def pixels(image):
    """CLIP's own preprocessing, written independently."""
    x = F.interpolate((image + 1) / 2, size=(16, 16), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    return (x - mean) / std


def test_the_image_outputs_are_the_published_models(image, clip_image_folder):
    model = CLIPVisionModelWithProjection.from_pretrained(clip_image_folder)
    with torch.no_grad():
        out = model(pixels(image), output_hidden_states=True)
        pooled = model.vision_model(pixels(image)).pooler_output
    for context, want in {
        "last": out.last_hidden_state,
        "penultimate": out.hidden_states[-2],
        "embedding": F.normalize(out.image_embeds, dim=-1)[:, None],
    }.items():
        given = ClipImage(str(clip_image_folder), context=context)({"image": image}).context
        torch.testing.assert_close(given, want, atol=1e-5, rtol=1e-4)
    for vector, want in {"pooled": pooled, "projected": out.image_embeds}.items():
        given = ClipImage(str(clip_image_folder), vector=vector)({"image": image}).vector
        torch.testing.assert_close(given, want, atol=1e-5, rtol=1e-4)


def test_a_grey_image_is_normalised_to_the_distance_from_the_mean():
    grey = normalised(torch.zeros(1, 3, 5, 7), (4, 6), (0.5, 0.25, 0.0), (1.0, 0.5, 0.25))
    torch.testing.assert_close(grey, torch.tensor([0.0, 0.5, 2.0]).view(1, 3, 1, 1).expand(1, 3, 4, 6))


@pytest.mark.parametrize(
    ("context", "vector"), [("last", None), ("penultimate", "pooled"), ("embedding", None), (None, "projected")]
)
def test_the_image_null_is_zeros_of_the_same_shape(context, vector, image):
    clip = ClipImage(config=VISION, context=context, vector=vector)
    given, null = clip({"image": image}).filled(), clip.null({"image": image}).filled()
    assert {slot: value.shape for slot, value in null.items()} == {slot: value.shape for slot, value in given.items()}
    assert all(not value.any() for value in null.values())
    assert {slot: value.shape[-1] for slot, value in given.items()} == clip.provides


@pytest.mark.parametrize(("context", "vector"), [("last", None), ("penultimate", None), (None, "projected")])
def test_a_trained_image_tower_trains_every_parameter_that_asks_for_it(context, vector, image):
    clip = ClipImage(config=VISION, context=context, vector=vector, frozen=False)
    sum(value.square().sum() for value in clip({"image": image}).filled().values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in clip.parameters())


def test_a_frozen_image_tower_lets_gradients_through_to_the_image(image, clip_image_folder):
    clip = ClipImage(str(clip_image_folder), vector="projected").train()
    assert not any(module.training for module in clip.modules())
    image.requires_grad_(True)
    clip({"image": image}).vector.square().sum().backward()
    assert image.grad.abs().sum() > 0


def test_the_batch_key_is_an_option(image):
    clip = ClipImage(config=VISION, key="reference", vector="pooled")
    assert clip.reads == ("reference",)
    assert clip({"reference": image}).vector.shape == (2, 32)


def test_images_of_another_shape_or_type_are_refused(image):
    clip = ClipImage(config=VISION, vector="pooled")
    for wrong in (image[0], image[:, :1], (image * 127).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"conditioner 'clip-image' reads batch\['image'\]"):
            clip({"image": wrong})


def test_a_text_tower_is_no_image_tower(clip_config, tmp_path):
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    with pytest.raises((CheckpointError, OSError, ValueError, RuntimeError)):
        ClipText(str(tmp_path), tokenizer=str(tmp_path))


@pytest.mark.parametrize("context", ["last", "embedding"])
@pytest.mark.parametrize("level", ["text_model.", ""])
def test_it_claims_its_tensors_in_a_file_of_stable_diffusion(level, context, clip_folder):
    text = ClipText(str(clip_folder), context=context)
    whole = CLIPTextModelWithProjection.from_pretrained(clip_folder).state_dict()
    file = [f"cond_stage_model.transformer.{name.replace('text_model.', level)}" for name in whole]
    claimed = text.claims([*file, "first_stage_model.conv.weight", "betas"])
    assert set(claimed) == set(file)
    assert sorted(own for own in claimed.values() if own) == sorted(
        n for n in text.state_dict() if "tokenizer" not in n
    )
    assert claimed["cond_stage_model.transformer.text_projection.weight"] == (
        "transformer.text_projection.weight" if context == "embedding" else None
    )


@pytest.mark.parametrize(
    "name",
    [
        "text_model.embeddings.position_ids",
        "embeddings.position_ids",
        "vision_model.post_layernorm.weight",
        "visual_projection.weight",
        "logit_scale",
    ],
)
def test_it_knows_what_else_a_file_may_hold_of_clip(name, clip_folder):
    file = f"cond_stage_model.transformer.{name}"
    assert ClipText(str(clip_folder)).claims([file]) == {file: None}


def test_without_words_it_says_how_to_read_some(clip_config):
    with pytest.raises(RuntimeError, match=r"'clip-text' has no tokenizer.* read_tokenizer\(...\) with a folder"):
        ClipText(config=clip_config)(BATCH)
