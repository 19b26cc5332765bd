"""Models recomposed for further conditions, frozen in part, and adapted by low-rank factors."""

import pytest
import torch

import ldmkit
from ldmkit.denoiser import DenoisingLoss
from ldmkit.errors import CheckpointError, CompositionError
from ldmkit.training.adapting import trainable, widened, with_sources
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.loop import train
from ldmkit.training.lora import adapt, load_adapter, merge, save_adapter, take_off
from ldmkit.training.optim import constant
from ldmkit.training.run import Run

UNET = {
    "channels": 3,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "num_heads": 2,
    "context_dim": 8,
}


def make(sources=None, **options):
    torch.manual_seed(1)
    model = ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=3),
        backbone=ldmkit.build("backbone", "unet", **{**UNET, **options}),
        process=ldmkit.build("process", "vp"),
        conditioner={"class": ldmkit.build("conditioner", "class-label", classes=3, width=8), **(sources or {})},
    ).eval()
    with torch.no_grad():  # the published networks begin with a last convolution of zeros, which would hide everything
        for parameter in model.backbone.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def test_what_belongs_to_no_weight_stays_where_the_model_is():
    bare = make()
    parts = {"first_stage": bare.stage, "backbone": bare.backbone, "process": bare.process}
    model = ldmkit.LatentDiffusion(**parts, conditioner=bare.conditioner, objective=DenoisingLoss(elbo_weight=0.1))
    assert with_sources(model, {}).elbo is model.elbo
    assert model.elbo is not None


HOLE = {"masked_image_latent": torch.randn(2, 3, 8, 8), "mask": torch.rand(2, 1, 8, 8).round()}
LABEL = {"label": torch.tensor([0, 2])}


def sample(model, batch=LABEL):
    return model.sample(batch, size=(8, 8), levels=3)


def test_a_widened_model_makes_the_images_it_made_whatever_the_new_condition_says():
    model = make()
    hole = ldmkit.build("conditioner", "masked-image", channels=3)
    wide = with_sources(model, {"hole": hole}, drop={"class": 0.1})
    assert wide.backbone.accepts["concat"] == 4
    assert wide.backbone.input_blocks[0][0].weight.shape[1] == 7
    torch.testing.assert_close(sample(wide, {**LABEL, **HOLE}), sample(model), atol=1e-5, rtol=0)
    assert wide.conditioner.guided == ("class",)
    assert wide.conditioner.drop == {"class": 0.1, "hole": 0.0}


def test_a_widened_model_learns_the_new_channels_and_saves(tmp_path):
    wide = with_sources(make(), {"hole": ldmkit.build("conditioner", "masked-image", channels=3)})
    wide.train().loss({**LABEL, **HOLE, "latent": torch.randn(2, 3, 8, 8)}, seeds=[0, 1]).backward()
    assert wide.backbone.input_blocks[0][0].weight.grad[:, 3:].abs().sum() > 0
    wide.eval().save(tmp_path / "wide.safetensors")
    again = ldmkit.load(tmp_path / "wide.safetensors")
    assert torch.equal(sample(again, {**LABEL, **HOLE}), sample(wide, {**LABEL, **HOLE}))


def test_concat_that_was_there_keeps_its_place():
    model = make({"low": ldmkit.build("conditioner", "low-res")}, concat_channels=3)
    batch = {**LABEL, "low_res": torch.randn(2, 3, 8, 8)}
    wide = with_sources(model, {"hole": ldmkit.build("conditioner", "masked-image", channels=3)})
    torch.testing.assert_close(sample(wide, {**batch, **HOLE}), sample(model, batch), atol=1e-5, rtol=0)


def test_a_conditioner_is_swapped_for_another_of_its_width():
    model = make()
    swapped = with_sources(
        model, {"class": ldmkit.build("conditioner", "precomputed", key="words", slot="context", size=8)}
    )
    assert swapped.backbone is model.backbone
    assert sample(swapped, {"words": torch.randn(2, 4, 8)}).shape == (2, 3, 8, 8)


def test_what_is_not_widening_is_refused():
    with pytest.raises(CompositionError, match="width"):
        with_sources(make(), {"class": ldmkit.build("conditioner", "class-label", classes=3, width=9)})
    with pytest.raises(CompositionError, match="reads 3 channels of concat and cannot be widened to 1"):
        widened(ldmkit.build("backbone", "unet", **UNET, concat_channels=3), 1)


def test_frozen_parts_stay_frozen_in_a_widened_model():
    model = make()
    trainable(model, ["denoiser.backbone.input_blocks.0.*"])
    wide = with_sources(model, {"hole": ldmkit.build("conditioner", "masked-image", channels=3)})
    trained = [name for name, p in wide.named_parameters() if p.requires_grad]
    assert trained == ["denoiser.backbone.input_blocks.0.0.weight", "denoiser.backbone.input_blocks.0.0.bias"]


def test_trainable_names_what_it_chose_and_refuses_what_fits_nothing():
    model = make()
    chosen = trainable(model, ["*.attn2.to_k.weight"])
    assert chosen
    assert all(name.endswith("attn2.to_k.weight") for name in chosen)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == chosen
    with pytest.raises(ValueError, match=r"no parameter fits '\*\.attn9\.\*'"):
        trainable(model, ["*.attn9.*"])


def adapted(model):
    adapter = adapt(model, ["*.attn2.to_*", "*.in_layers.2"], rank=2, alpha=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(0, 0.3)
    return adapter


def test_an_adapter_begins_as_the_model_and_alone_is_trained():
    model = make()
    before = sample(model)
    adapter = adapt(model, ["*.attn2.to_*"], rank=2)
    assert torch.equal(sample(model), before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(adapter.layers)
    model.train().loss({**LABEL, "latent": torch.randn(2, 3, 8, 8)}, seeds=[0, 1]).backward()
    assert all(model.get_parameter(name).grad is not None for name in trained)
    assert any(model.get_parameter(name).grad.abs().sum() > 0 for name in trained)


def test_a_merged_adapter_gives_the_adapted_images_and_a_plain_model(tmp_path):
    model = make()
    before, names = sample(model), list(model.state_dict())
    adapter = adapted(model)
    changed = sample(model)
    assert (changed - before).abs().max() > 1e-3
    with pytest.raises(CompositionError, match="merge the adapter"):
        model.save(tmp_path / "adapted.safetensors")
    merge(model, adapter)
    torch.testing.assert_close(sample(model), changed, atol=1e-5, rtol=0)
    assert list(model.state_dict()) == names or set(model.state_dict()) == set(names)
    model.save(tmp_path / "merged.safetensors")
    torch.testing.assert_close(sample(ldmkit.load(tmp_path / "merged.safetensors")), changed, atol=1e-5, rtol=0)


def test_taking_an_adapter_off_gives_the_model_back():
    model = make()
    before = sample(model)
    take_off(model, adapted(model))
    assert torch.equal(sample(model), before)


def test_an_adapter_is_saved_small_and_loaded_elsewhere(tmp_path):
    model = make()
    save_adapter(model, adapted(model), tmp_path / "style.safetensors")
    model_size = sum(v.numel() for v in make().state_dict().values()) * 4
    assert (tmp_path / "style.safetensors").stat().st_size < model_size / 5
    other = make()
    load_adapter(other, tmp_path / "style.safetensors")
    torch.testing.assert_close(sample(other), sample(model), atol=1e-6, rtol=0)


def test_an_adapter_of_another_model_changes_nothing(tmp_path):
    model = make()
    save_adapter(model, adapted(model), tmp_path / "style.safetensors")
    other = make(model_channels=64)
    before = sample(other)
    with pytest.raises(CheckpointError, match="made for another model"):
        load_adapter(other, tmp_path / "style.safetensors")
    assert torch.equal(sample(other), before)


def test_a_file_that_is_no_adapter_is_refused(tmp_path):
    make().save(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not an adapter"):
        load_adapter(make(), tmp_path / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable adapter"):
        load_adapter(make(), tmp_path / "text.safetensors")


def test_wrong_targets_are_refused_by_name():
    model = make()
    with pytest.raises(ValueError, match=r"fits '\*\.attn9'"):
        adapt(model, ["*.attn9"])
    with pytest.raises(ValueError, match="rank of at least 1"):
        adapt(model, ["*.attn2.to_k"], rank=0)
    adapt(model, ["*.attn2.to_k"])
    with pytest.raises(ValueError, match="have an adapter already"):
        adapt(model, ["*.attn2.to_k"])


def test_a_run_of_an_adapter_writes_the_adapter_alone(tmp_path):
    model, data = make(), [{"target": torch.rand(3, 8, 8), "label": i} for i in range(3)]
    adapter = adapt(model, ["*.attn2.to_*"], rank=2)
    run = Run(tmp_path / "run", steps=2, batch=3, rate=constant(1e-2), ema=None, progress=False)
    path = train(Diffusion(model, "class-conditional", adapter=adapter), data, run)
    other = make()
    before = sample(other)
    load_adapter(other, path)
    assert torch.equal(sample(other), sample(model))
    assert not torch.equal(sample(other), before)


def test_what_could_not_be_written_is_refused_before_the_first_step():
    model = make()
    adapt(model, ["*.attn2.to_*"], rank=2)
    with pytest.raises(CompositionError, match=r"have an adapter, .* give the adapter as adapter="):
        Diffusion(model, "class-conditional")
