"""Laws of the objective of a first stage, term by term; whole runs are in ``test_training_first_stage_run.py``."""

import math

import pytest
import torch
from torch import nn

from ldmkit.first_stages import KL, VQ, Gaussian, Pixel
from ldmkit.latents import posterior_noise
from ldmkit.training.discriminator import Adversary, BatchNorm, PatchGAN, balance, deceiving, hinge, vanilla
from ldmkit.training.first_stage import (
    Autoencoding,
    CodebookWeight,
    Discriminating,
    FirstStageLoss,
    KLWeight,
    LogVariance,
    MeanError,
    Outside,
    l1,
    l2,
)
from ldmkit.training.perceptual import GradientDistance

TINY = {"base_channels": 32, "num_res_blocks": 1, "resolution": 32, "channels": 3}
LAST = "decoder.conv_out"
SEEDS = (5, 6)


def kl(mults=(1, 2)):
    return KL(channel_mult=mults, **TINY)


def vq(mults=(1, 2)):
    return VQ(channel_mult=mults, codebook_size=16, **TINY)


REGULARISERS = {kl: KLWeight(), vq: CodebookWeight()}
every_stage = pytest.mark.parametrize("make", [kl, vq])


def small_gan(image_channels=3):
    return PatchGAN(image_channels, base_channels=4, layers=1)


def objective(make=kl, **terms):
    return FirstStageLoss(**{"perceptual": GradientDistance(), "regulariser": REGULARISERS[make], **terms})


def autoencoding(make=kl, adversary=None, stage=None, **terms):
    return Autoencoding(stage or make(), objective(make, **terms), adversary, LAST)


def images(batch=2, side=16):
    return torch.rand(batch, 3, side, side) * 2 - 1


def logits(*values):
    """Two logits for each image."""
    return torch.tensor(values).view(-1, 1, 1, 2)


def test_hinge_by_hand():
    real, made = logits((2.0, 0.5), (-1.0, 1.0)), logits((-3.0, 0.0), (1.0, -1.0))
    # (0 + .5 + 0 + 1) / 4 and (2 + 0 + 2 + 0) / 4
    torch.testing.assert_close(hinge(real, made), torch.tensor([0.375, 1.0]))


def test_vanilla_by_hand():
    real, made = logits((0.0, 0.0), (math.log(3), math.log(3))), logits((0.0, 0.0), (-math.log(3), -math.log(3)))
    torch.testing.assert_close(vanilla(real, made), torch.tensor([math.log(2), math.log(4 / 3)]))


def test_deceiving_raises_the_logits_of_what_was_made():
    torch.testing.assert_close(deceiving(logits((-3.0, 1.0), (2.0, 2.0))), torch.tensor([1.0, -2.0]))


def test_balance_by_hand():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    fit, adversarial = (last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([0.0, 2.0])).sum()
    assert float(balance(fit, adversarial, last)) == pytest.approx(5 / (2 + 1e-4))
    assert not balance(fit, adversarial, last).requires_grad
    (fit + adversarial).backward()  # the graph is still there
    assert last.grad.tolist() == [3, 6]


def test_balance_has_a_ceiling():
    last = torch.tensor([1.0], requires_grad=True)
    assert float(balance(3 * last.sum(), 0 * last.sum(), last)) == 1e4


def test_pixel_errors():
    a, b = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 1.0])
    assert l1(a, b).tolist() == [0.5, 2]
    assert l2(a, b).tolist() == [0.25, 4]


def test_the_distance_is_added_to_the_error_of_every_element():
    image, made = images(), images()
    terms = objective(perceptual_weight=3.0)(image, made, KL(**TINY).posterior(image))
    torch.testing.assert_close(terms.perceptual, GradientDistance()(image, made))
    torch.testing.assert_close(terms.fit, (image - made).abs().mean(dim=(1, 2, 3)) + 3 * terms.perceptual)
    torch.testing.assert_close(terms.total, terms.fit + terms.regulariser)
    none = objective(perceptual=None)(image, made, KL(**TINY).posterior(image))
    torch.testing.assert_close(none.fit, none.pixels)


def test_kl_is_weighted_per_sample():
    posterior = Gaussian(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2))
    torch.testing.assert_close(KLWeight(0.1)(posterior), torch.full((2,), 0.1 * 0.5 * 12))
    assert KLWeight().numbers(posterior) == {"kl": 6.0, "posterior_std": 1.0}


@pytest.mark.parametrize("beta_on", ["codebook", "commitment"])
def test_the_codebook_loss_keeps_the_stage_s_beta(beta_on):
    stage = VQ(codebook_size=16, beta=0.25, beta_on=beta_on, **TINY)
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    CodebookWeight(2.0)(stage.quantize(z)).sum().backward()
    away = 2 * (z - stage.quantize.snap(z)).detach() / z[0].numel()
    torch.testing.assert_close(z.grad, 2.0 * (1 if beta_on == "codebook" else 0.25) * away)


def test_codebook_numbers_count_the_codes():
    stage = VQ(codebook_size=16, **TINY)
    z = stage.quantize.codes(torch.tensor([[[3, 3], [7, 7]]]))
    numbers = CodebookWeight().numbers(stage.quantize(z))
    assert (numbers["used"], numbers["perplexity"]) == (2, pytest.approx(2))


def test_log_variance_learns_the_log_of_the_mean_error():
    error = torch.rand(2, 3, 4, 4) * 0.2
    fit = LogVariance()
    optimizer = torch.optim.LBFGS(fit.parameters(), line_search_fn="strong_wolfe")
    optimizer.step(lambda: (optimizer.zero_grad(), (loss := fit(error).mean()).backward(), loss.detach())[-1])
    assert float(fit.value.detach()) == pytest.approx(math.log(float(error.mean())), abs=1e-3)


def test_a_frozen_log_variance_is_the_sum():
    error = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(LogVariance(frozen=True)(error), error.sum(dim=(1, 2, 3)))
    assert not [p for p in LogVariance(frozen=True).parameters() if p.requires_grad]
    torch.testing.assert_close(MeanError()(error), error.mean(dim=(1, 2, 3)))


def test_the_log_variance_is_one_of_the_phase_s_trained_weights():
    phase = autoencoding(fit=LogVariance())
    phase({"image": images()}, SEEDS, 0).mean().backward()
    trained = dict(phase.named_parameters())
    assert trained["loss.fit.value"].grad.abs() > 0


@pytest.mark.parametrize("levels", range(6))
@every_stage
def test_every_factor_learns(make, levels):
    factor = 2**levels
    stage = make((1,) * (levels + 1))
    phase = autoencoding(make, Adversary(small_gan(), start=0), stage)
    assert stage.factor == factor
    loss = phase({"image": images(side=max(16, 2 * factor))}, SEEDS, 0)
    assert loss.shape == (2,)
    loss.mean().backward()
    for name, parameter in phase.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert stage.encoder.conv_in.weight.grad.abs().sum() > 0


@every_stage
def test_the_adversary_joins_at_its_step(make):
    gan, stage = small_gan(), make()
    adversary = Adversary(gan, weight=0.7, start=3)
    first, second = autoencoding(make, adversary, stage), Discriminating(adversary, stage)
    batch = {"image": images()}
    before, after = first.terms(batch["image"], SEEDS, 2), first.terms(batch["image"], SEEDS, 3)
    assert float(before.weight) == 0
    torch.testing.assert_close(before.total, after.fit + after.regulariser)
    assert not second(batch, SEEDS, 2).requires_grad
    assert not second(batch, SEEDS, 2).any()
    assert second(batch, SEEDS, 3).requires_grad
    made, _ = stage(batch["image"], posterior_noise(stage, batch["image"], SEEDS))
    torch.testing.assert_close(after.adversarial, -gan(made).mean(dim=(1, 2, 3)))
    expected = 0.7 * balance(after.fit.mean(), after.adversarial.mean(), stage.decoder.conv_out.weight)
    torch.testing.assert_close(after.weight, expected)
    torch.testing.assert_close(after.total, after.fit + after.regulariser + expected * after.adversarial)


@every_stage
def test_a_phase_trains_its_own_weights_alone(make):
    gan, stage = small_gan(), make()
    adversary = Adversary(gan, start=0)
    first, second = autoencoding(make, adversary, stage), Discriminating(adversary, stage)
    batch = {"image": images()}
    first(batch, SEEDS, 0).mean().backward()
    assert {*map(id, first.parameters())} == {*map(id, stage.parameters())}
    assert all(p.grad is None for p in gan.parameters())
    stage.zero_grad()
    second(batch, SEEDS, 0).mean().backward()
    assert {*map(id, second.parameters())} == {*map(id, gan.parameters())}
    assert all(p.grad is None for p in stage.parameters())
    assert all(p.grad.isfinite().all() for p in gan.parameters())


@pytest.mark.parametrize("loss", [hinge, vanilla])
def test_the_discriminator_learns_to_tell_and_the_autoencoder_to_deceive(loss):
    gan, stage = PatchGAN(base_channels=8, layers=1), kl()
    adversary = Adversary(gan, start=0, loss=loss)
    first, second = autoencoding(adversary=adversary, stage=stage), Discriminating(adversary, stage)
    batch = {"image": images()}
    optimizer = torch.optim.Adam(gan.parameters(), 2e-3)
    start = second(batch, SEEDS, 0).mean()
    for _ in range(30):
        optimizer.zero_grad()
        second(batch, SEEDS, 0).mean().backward()
        optimizer.step()
    assert second(batch, SEEDS, 0).mean() < 0.5 * start
    told = first.terms(batch["image"], SEEDS, 0).adversarial.mean()
    optimizer = torch.optim.SGD(stage.parameters(), 1e-3)
    first.terms(batch["image"], SEEDS, 0).adversarial.mean().backward()
    optimizer.step()
    assert first.terms(batch["image"], SEEDS, 0).adversarial.mean() < told


def test_the_draw_is_a_function_of_the_seeds():
    phase, image = autoencoding(), images()
    phase.stage.quant_conv.weight.data[3:] = 0
    phase.stage.quant_conv.bias.data[3:] = 0  # a deviation of 1
    batch = {"image": image}
    loss = phase(batch, SEEDS, 0)
    assert torch.equal(phase(batch, SEEDS, 7), loss)
    assert not torch.equal(phase(batch, (6, 5), 0), loss)
    torch.testing.assert_close(phase({"image": image[1:]}, SEEDS[1:], 0), loss[1:])


@every_stage
def test_bf16_autocast_gives_the_same_loss_in_float32(make):
    phase = autoencoding(make, Adversary(small_gan(), start=0))
    batch = {"image": images()}
    exact = phase.terms(batch["image"], SEEDS, 0)
    with torch.autocast("cpu", torch.bfloat16):
        terms = phase.terms(batch["image"], SEEDS, 0)
    terms.total.mean().backward()
    assert terms.total.dtype == terms.weight.dtype == torch.float32
    torch.testing.assert_close(terms.fit, exact.fit, rtol=0.05, atol=0)
    torch.testing.assert_close(terms.weight, exact.weight, rtol=0.2, atol=0)


@pytest.mark.parametrize(("layers", "millions"), [(3, 2.766), (2, 0.663)])
def test_patch_gans_have_the_published_size(layers, millions):
    gan = PatchGAN(layers=layers)
    assert sum(p.numel() for p in gan.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize(("layers", "patch"), [(3, 70), (2, 34), (1, 16)])
def test_a_logit_sees_one_patch(layers, patch):
    gan = PatchGAN(base_channels=2, layers=layers, norm=lambda channels: nn.Identity())
    image = torch.zeros(1, 3, 120, 120, requires_grad=True)
    out = gan(image)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == patch


def test_batch_norm_is_torch_s_in_training():
    ours, theirs = BatchNorm(5), nn.BatchNorm2d(5)
    ours.weight.data.normal_()
    ours.bias.data.normal_()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = 2 + 3 * torch.randn(4, 5, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs(x))


def test_what_is_outside_is_a_constant():
    module = nn.Conv2d(3, 3, 1)
    x = images().requires_grad_()
    torch.testing.assert_close(Outside(module)(x), module(x))
    Outside(module)(x).sum().backward()
    assert module.weight.grad is None
    assert x.grad.abs().sum() > 0


def test_wrong_parts_are_refused():
    with pytest.raises(TypeError, match="Linear is not a first stage"):
        Autoencoding(nn.Linear(1, 1), objective(), None, LAST)
    with pytest.raises(ValueError, match=r"first stage Pixel has no layer 'decoder\.conv_out' with a weight"):
        Autoencoding(Pixel(), objective(), Adversary(small_gan()), LAST)
    with pytest.raises(ValueError, match="weight of an adversary is at least 0, got -1"):
        Adversary(small_gan(), weight=-1)
    with pytest.raises(ValueError, match="start=-1"):
        Adversary(small_gan(), start=-1)
    with pytest.raises(ValueError, match="perceptual_weight must be at least 0, got -1"):
        objective(perceptual_weight=-1)
    with pytest.raises(ValueError, match="positive image_channels, base_channels and layers, got 3, 64 and 0"):
        PatchGAN(layers=0)
    with pytest.raises(ValueError, match=r"at least 24 pixels a side, got \(2, 3, 16, 16\)"):
        PatchGAN(base_channels=4)(images())
    with pytest.raises(ValueError, match=r"layer 'decoder\.conv_out' of first stage KL is frozen"):
        Autoencoding(kl().requires_grad_(False), objective(), Adversary(small_gan()), LAST)


def test_images_too_small_for_the_adversary_are_refused_in_the_first_step():
    second = Discriminating(Adversary(PatchGAN(base_channels=4), start=50_001), kl())
    with pytest.raises(ValueError, match=r"at least 24 pixels a side, got \(2, 3, 16, 16\)"):
        second({"image": images()}, SEEDS, 0)
