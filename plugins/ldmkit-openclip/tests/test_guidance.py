"""CLIP guidance: what it adds is the gradient it says, and nothing when it is off."""

from dataclasses import replace

import ldmkit
import pytest
import torch
from conftest import TINY
from ldmkit import Conditioning
from ldmkit.guidance import CFG, Guidance
from ldmkit.process import VP

from ldmkit_openclip.guidance import ClipGuidance, ClipSimilarity, clip_guidance


@pytest.fixture
def similarity(weights):
    return ClipSimilarity(TINY, weights)


@pytest.fixture
def guidance(similarity):
    return ClipGuidance(similarity, lambda x0: x0, ["a red cat"], scale=20.0)


UNET = {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [1], "num_heads": 1}
LEVELS = VP("cosine").levels(4)
X = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16).sin()


def bind(cond):
    """A network whose estimate depends on the state, the level and the condition."""
    del cond
    return lambda x, level: torch.tanh(level.alpha * x)


def steered(guidance, x, level):
    return guidance(bind, Conditioning(), None, LEVELS)(x, level)


def test_it_is_a_guidance(guidance):
    assert isinstance(guidance, Guidance)
    assert guidance.needs_grad
    assert not guidance.needs_uncond
    assert replace(guidance, inner=CFG(3.0)).needs_uncond


def test_scale_zero_is_the_guidance_that_it_steers(guidance):
    off = replace(guidance, scale=0.0)
    assert not off.needs_grad
    for level in LEVELS.stops[:-1]:
        assert torch.equal(steered(off, X, level), bind(None)(X, level))


def test_it_adds_the_gradient_of_the_similarity_times_sigma_squared_over_alpha(guidance, similarity):
    level = LEVELS.stops[1]
    text = similarity.text(["a red cat"])
    added = (steered(guidance, X, level) - bind(None)(X, level)) * level.alpha / level.sigma**2 / 20.0
    direction = torch.randn(X.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wide = ClipSimilarity(TINY).double()
    wide.load_state_dict({name: value.double() for name, value in similarity.state_dict().items()})

    def similar(step):
        return wide(bind(None)(X.double() + step * direction, level), text.double()).sum()

    slope = (similar(1e-4) - similar(-1e-4)) / 2e-4
    torch.testing.assert_close((added * direction.float()).sum(), slope.float(), rtol=2e-3, atol=1e-6)


def test_it_makes_the_estimate_more_similar(guidance, similarity):
    text = similarity.text(["a red cat"])
    level = LEVELS.stops[1]
    plain, better = (similarity(steered(g, X, level), text) for g in (replace(guidance, scale=0.0), guidance))
    assert (better > plain).all()


def test_images_do_not_depend_on_their_neighbours(guidance):
    level = LEVELS.stops[1]
    torch.testing.assert_close(steered(guidance, X, level)[:1], steered(guidance, X[:1], level))


def test_each_image_may_have_its_prompt(guidance):
    level = LEVELS.stops[1]
    two = steered(replace(guidance, prompts=["a red cat", "the moon"]), X, level)
    torch.testing.assert_close(two[:1], steered(guidance, X, level)[:1])
    assert not torch.allclose(two[1:], steered(guidance, X, level)[1:])
    with pytest.raises(ValueError, match="has 3 prompts for 2 images"):
        steered(replace(guidance, prompts=["a", "b", "c"]), X, level)


def test_it_works_without_gradients_around_it_and_leaves_no_graph(guidance):
    level = LEVELS.stops[1]
    with torch.no_grad():
        inside = steered(guidance, X, level)
        assert not torch.is_grad_enabled()
    assert not inside.requires_grad
    assert not X.requires_grad
    assert all(p.grad is None for p in guidance.similarity.parameters())


def test_levels_without_signal_or_noise_are_not_steered(guidance):
    zero = VP("cosine", zero_terminal_snr=True)
    for level in (zero.level(zero.t_max), zero.clean):
        assert torch.equal(steered(guidance, X, level), bind(None)(X, level))


@pytest.mark.parametrize("prompts", [[], "a cat"])
def test_prompts_are_a_list(prompts, similarity):
    with pytest.raises(ValueError, match="needs a list of prompts"):
        ClipGuidance(similarity, lambda x0: x0, prompts, scale=1.0)
    with pytest.raises(ValueError, match="needs a list of prompts"):
        clip_guidance(TINY, prompts=prompts, decode=lambda x0: x0, scale=1.0)


def test_images_that_clip_cannot_read_are_refused(similarity):
    with pytest.raises(ValueError, match=r"CLIP reads images of shape \(B, 3, H, W\), got \(2, 1, 16, 16\)"):
        similarity(X[:, :1], similarity.text(["a"]))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    first_stage = ldmkit.build("first-stage", "kl", channels=3, base_channels=32, channel_mult=[1, 1], num_res_blocks=1)
    backbone = ldmkit.build("backbone", "unet", channels=3, num_classes=4, **UNET)
    torch.nn.init.normal_(backbone.out[2].weight, std=0.1)
    return ldmkit.LatentDiffusion(
        first_stage=first_stage,
        backbone=backbone,
        process=ldmkit.build("process", "vp", betas="cosine"),
        prediction="v",
        conditioner=ldmkit.build("conditioner", "class-index", classes=3),
    ).eval()


def test_a_latent_model_samples_images_that_are_more_similar(model, similarity, weights):
    def sampled(scale):
        guidance = ldmkit.build(
            "guidance",
            "clip-guidance",
            architecture=TINY,
            source=weights,
            prompts=["a red cat"],
            decode=model.stage.decode,
            scale=scale,
            inner=CFG(2.0),
        )
        z = model.sample({"label": torch.tensor([0, 2])}, size=(16, 16), levels=6, seed=1, guidance=guidance)
        return similarity(model.decode(z), similarity.text(["a red cat"]))

    assert (sampled(60.0) > sampled(0.0)).all()
