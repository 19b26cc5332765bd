"""The second stage in the loop: records become batches as in sampling, and what is trained is what is saved."""

import numpy as np
import pytest
import torch
from torch import nn

import ldmkit
from ldmkit.errors import BatchError
from ldmkit.noise import Noise
from ldmkit.training.data import Feed
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.log import read_log
from ldmkit.training.loop import train
from ldmkit.training.optim import cosine
from ldmkit.training.run import Run

SIZE = 8


def model(first_stage=None):
    torch.manual_seed(2)
    stage = first_stage or ldmkit.build("first-stage", "pixel", channels=1)
    backbone = ldmkit.build(
        "backbone",
        "unet",
        channels=stage.channels,
        model_channels=32,
        channel_mult=[1],
        num_res_blocks=1,
        attention_resolutions=[],
        num_heads=1,
        context_dim=8,
        dropout=0.1,
    )
    joint = ldmkit.Joint({"kind": ldmkit.build("conditioner", "class-label", classes=3, width=8)}, drop={"kind": 0.2})
    process = ldmkit.build("process", "vp")
    return ldmkit.LatentDiffusion(first_stage=stage, backbone=backbone, process=process, conditioner=joint)


def kl(**options):
    torch.manual_seed(1)
    tiny = {"channels": 2, "base_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "image_channels": 1}
    return ldmkit.build("first-stage", "kl", **tiny, **options)


def records(count=10):
    images = torch.rand(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    return [{"target": image, "label": i % 3, "path": f"{i}.png"} for i, image in enumerate(images)]


def feed(count=10):
    return Feed(records(count), None, 0, 4)


def run(out, steps, **options):
    given = {"batch": 4, "save_every": 2, "show_every": 4, "log_every": 2, "progress": False}
    return Run(out=out, steps=steps, rate=cosine(1e-3, 10), **given, **options)


def test_a_model_trains_goes_on_and_is_saved_whole(tmp_path):
    whole = ldmkit.load(train(Diffusion(model(kl()), "class-conditional"), records(), run(tmp_path / "whole", 4)))
    train(Diffusion(model(kl()), "class-conditional"), records(), run(tmp_path / "cut", 2))
    again = ldmkit.load(train(Diffusion(model(kl()), "class-conditional"), records(), run(tmp_path / "cut", 4)))
    fresh = model(kl()).state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        frozen = name.startswith("first_stage.")
        assert torch.equal(value, fresh[name]) or not frozen, name
    assert not torch.equal(whole.denoiser.backbone.out[2].weight, fresh["denoiser.backbone.out.2.weight"])


def test_the_loss_falls(tmp_path):
    train(Diffusion(model(), "class-conditional"), records(), run(tmp_path, 10))
    losses = [line["diffusion/loss"] for line in read_log(tmp_path / "log.jsonl")]
    assert losses[-1] < 0.9 * losses[0]


def test_a_batch_is_what_the_task_makes_and_the_target():
    batch = Diffusion(model(), "class-conditional").prepare(records(4), (0, 1, 2, 3))
    assert batch.keys() == {"label", "image"}
    assert batch["label"].tolist() == [0, 1, 2, 0]
    torch.testing.assert_close(batch["image"][2], records(4)[2]["target"] * 2 - 1)


def test_targets_come_in_any_form_an_image_has():
    given = [{"target": (record["target"][0].numpy() * 255).astype(np.uint8), "label": 0} for record in records(2)]
    batch = Diffusion(model(), "class-conditional").prepare(given, (0, 1))
    torch.testing.assert_close(batch["image"][1], records(2)[1]["target"] * 2 - 1, rtol=0, atol=2 / 255)


@pytest.mark.parametrize("missing", ["target", "label"])
def test_a_record_that_lacks_something_is_named(missing):
    given = records(3)
    del given[1][missing]
    with pytest.raises(BatchError, match=rf"record 1 of a batch has no '{missing}'; it has \['"):
        Diffusion(model(), "class-conditional").prepare(given, (0, 1, 2))


def test_the_scale_brings_latents_to_unit_deviation():
    made = model(kl(scale=5.0))
    Diffusion(made, "class-conditional", measure=40).begin(feed(40).first)
    image = torch.stack([record["target"] for record in feed(40).first(40)]) * 2 - 1
    noise = Noise(tuple(range(40))).on("posterior").constant(torch.empty(40, 2, SIZE // 2, SIZE // 2))
    assert float(made.encode(image, noise).std()) == pytest.approx(1, rel=1e-5)


def test_a_stage_without_a_scale_is_not_measured():
    class Plain(nn.Module):
        factor = channels = image_channels = 1

        def encode(self, image, noise=None):
            return image

        def decode(self, z):
            return z

    with pytest.raises(ValueError, match="first stage Plain has no scale that measure=8 samples could set"):
        Diffusion(model(Plain()), "class-conditional", measure=8)


def test_a_measured_scale_is_kept_when_a_run_goes_on(tmp_path):
    first, again = model(kl()), model(kl())
    train(Diffusion(first, "class-conditional", measure=8), records(), run(tmp_path, 2))
    train(Diffusion(again, "class-conditional", measure=8), records(), run(tmp_path, 4))
    assert torch.equal(first.stage.scale, again.stage.scale)
    assert float(first.stage.scale) != 1


def test_stored_latents_train_what_images_train():
    made, seeds = model(kl()), (3, 4, 5)
    trainee = Diffusion(made, "class-conditional")
    posterior = made.first_stage.posterior(torch.stack([r["target"] for r in records(3)]) * 2 - 1)
    stored = [
        {"latent": mean.detach(), "latent_std": std.detach(), "label": i % 3}
        for i, (mean, std) in enumerate(zip(posterior.mean, posterior.std, strict=True))
    ]
    nn.init.normal_(made.eval().denoiser.backbone.out[2].weight)  # it starts at zero, where the loss ignores the latent
    a, b = (made(trainee.prepare(given, seeds), seeds) for given in (records(3), stored))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_samples_are_the_same_inputs_and_seeds_every_time():
    asked = {"label": [0, 1], "height": SIZE, "width": SIZE, "num_inference_steps": 2, "seed": 3}
    trainee = Diffusion(model().eval(), "class-conditional", samples=asked)
    first, again = trainee.show(1)["samples"], trainee.show(2)["samples"]
    assert first.shape == (2, 1, SIZE, SIZE)
    assert torch.equal(first, again)
    assert Diffusion(model(), "class-conditional").show(1) == {}


def test_noise_in_a_batch_belongs_to_the_sample():
    class Noised:
        takes, fills, draws = ("label",), ("label",), ("grain",)

        def prepare(self, inputs):
            return {"label": torch.tensor(inputs["label"])}

        def noised(self, batch, noise):
            return {**batch, "grain": noise.constant(torch.empty(len(batch["label"]), 2))}

    made = model()
    made.conditioner.sources["kind"].also_reads = ("grain",)
    trainee = Diffusion(made, Noised())
    whole = trainee.prepare(records(3), (7, 8, 9))["grain"]
    assert torch.equal(trainee.prepare(records(3)[1:], (8, 9))["grain"], whole[1:])


def test_the_first_stage_is_frozen_and_the_rest_is_as_it_was():
    made = model(kl())
    cast_out = made.denoiser.backbone.out
    cast_out.requires_grad_(False)
    trainee = Diffusion(made, "class-conditional")
    trained = {name for name, p in trainee.phases["diffusion"].named_parameters() if p.requires_grad}
    assert not any("first_stage" in name or ".out." in name for name in trained)
    assert any("conditioner" in name for name in trained)
    assert isinstance(trainee.phases["diffusion"], nn.Module)


def test_what_is_wrong_with_a_batch_names_its_samples(tmp_path):
    data = records(4)
    data[2]["target"] = torch.rand(1, 2 * SIZE, 2 * SIZE)
    with pytest.raises(ValueError, match="target") as caught:
        train(Diffusion(model(), "class-conditional"), data, run(tmp_path, 2))
    assert "2" in caught.value.__notes__[0].partition("samples [")[2]
