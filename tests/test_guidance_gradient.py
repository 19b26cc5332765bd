"""Guidance by gradients: exact where the likelihood is, for every sampler, and never in the way of the parameters."""

import math

import pytest
import torch

import ldmkit
from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import Denoiser
from ldmkit.guidance import CFG, ClassifierGuidance, Downsampled, ImageGuidance, Perceptual, Rescale
from ldmkit.noise import Noise
from ldmkit.process import EDM, VP, Levels, RectifiedFlow, at
from ldmkit.samplers.ddim import DDIM
from ldmkit.testing import Gaussian, GaussianBackbone, convergence_order

DATA = Gaussian(mean=0.3, std=0.5)
SEEN, GAIN, OFFSET, ERROR = 1.4, 2.0, -0.1, 0.4  # y = GAIN * x0 + OFFSET + N(0, ERROR**2)


def decode(x0):
    return GAIN * x0 + OFFSET


def exact(image, level):
    """log p(y | x), which knows how uncertain the estimate of x0 is."""
    variance = (DATA.std * level.sigma / DATA.spread(level)) ** 2
    return -0.5 * (SEEN - image).square().flatten(1).sum(1) / (GAIN**2 * variance + ERROR**2)


def posterior():
    precision = 1 / DATA.std**2 + GAIN**2 / ERROR**2
    mean = (DATA.mean / DATA.std**2 + GAIN * (SEEN - OFFSET) / ERROR**2) / precision
    return Gaussian(mean, precision**-0.5)


def bind(cond):
    return DATA.denoise


def bound(guidance, levels, to=bind):
    with torch.no_grad():
        return guidance(to, Conditioning(), None, levels)


def states(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow()], ids=str)
def test_an_exact_guider_gives_the_exact_posterior_at_every_level(process):
    guidance = ImageGuidance(exact, decode)
    levels = process.levels(7)
    denoise = bound(guidance, levels)
    for level in levels.stops[:-1]:
        if level.alpha and level.sigma:
            x = level.alpha * DATA.mean + DATA.spread(level) * states(2, 1, 3, 3)
            with torch.no_grad():
                torch.testing.assert_close(denoise(x, level), posterior().denoise(x, level))


def even_times(n):
    return at(VP(), [900 - 800 * i / n for i in range(n)], landing=VP().level(100.0))


def test_sampling_converges_to_the_exact_posterior():
    def error(levels):
        x = posterior().spread(levels.start) * states(1, 1, 4, 4) + levels.start.alpha * posterior().mean
        got = DDIM()(bound(ImageGuidance(exact, decode), levels), x, levels, Noise((0,)))
        return float((got - posterior().flow(x, levels.start, levels.landing)).abs().max())

    assert convergence_order(error, even_times, (32, 64, 128)) == pytest.approx(1, abs=0.15)


def way(sampler, levels):
    """The levels, or the same ones back for a sampler that climbs."""
    try:
        sampler.check(levels)
    except ValueError:
        return Levels(levels.process, levels.stops[::-1])
    return levels


@pytest.mark.parametrize("name", ldmkit.names("sampler"))
def test_every_sampler_samples_the_posterior_as_if_it_were_the_data(name):
    sampler = ldmkit.build("sampler", name)
    levels, x, noise = way(sampler, VP().levels(50)), states(8, 1, 8, 8), Noise(tuple(range(8)))
    with torch.no_grad():
        got = sampler(bound(ImageGuidance(exact, decode), levels), x, levels, noise)
        torch.testing.assert_close(got, sampler(posterior().denoise, x, levels, noise))
    assert abs(posterior().mean - DATA.mean) > 0.3
    if levels.falling:
        assert float(got.mean()) == pytest.approx(posterior().mean, abs=0.05)


KINDS = (Gaussian(-0.6, 0.4), Gaussian(0.7, 0.4))


def log_odds(x, level):
    """log p(x | class) of each class, for one pixel per image."""
    pixel = x.flatten(1)
    return torch.cat([-0.5 * ((pixel - level.alpha * k.mean) / k.spread(level)) ** 2 for k in KINDS], dim=1)


def bind_mixture(cond):
    def denoise(x, level):
        share = log_odds(x, level).softmax(1)
        return sum(share[:, i].view(-1, 1, 1, 1) * kind.denoise(x, level) for i, kind in enumerate(KINDS))

    return denoise


def classifier(x, t):
    """The exact classifier of states of the process VP()."""
    return log_odds(x, VP().level(float(t[0])))


@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow()], ids=str)
def test_an_exact_classifier_turns_a_mixture_into_the_class_that_is_wanted(process):
    levels = at(process, [process.time(snr) for snr in (-6.0, -2.0, 0.0, 3.0)], process.clean)
    guidance = ClassifierGuidance(classifier, (0, 1, 1), process=VP())
    denoise = bound(guidance, levels, bind_mixture)
    for level in levels.stops[:-1]:
        x = 2 * states(3, 1, 1, 1)
        expected = torch.cat([KINDS[i].denoise(one[None], level) for i, one in zip((0, 1, 1), x, strict=True)])
        with torch.no_grad():
            torch.testing.assert_close(denoise(x, level), expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_sees_what_a_network_of_its_process_sees():
    seen = []

    def listening(x, t):
        seen.append((x, t))
        return torch.cat([x.flatten(1), -x.flatten(1)], 1)

    levels, x = EDM().levels(3), 5 * states(2, 1, 1, 1)
    denoise = bound(ClassifierGuidance(listening, 1), levels)
    denoise(x, levels.start)
    torch.testing.assert_close(seen[0][0].detach(), x / math.hypot(1, 80))
    assert seen[0][1].tolist() == pytest.approx([EDM().t_max] * 2)


def test_the_scale_is_a_factor_on_the_gradient_and_the_inner_guidance_is_guided():
    levels = VP().levels(5)
    level, x = levels.stops[2], states(3, 1, 2, 2)
    weight = torch.tensor((0.5, 2.0, 0.0), dtype=torch.float64).view(-1, 1, 1, 1)
    for make in (lambda **o: ImageGuidance(exact, decode, **o), lambda **o: ClassifierGuidance(two_classes, 1, **o)):
        once = bound(make(), levels)(x, level) - DATA.denoise(x, level)
        several = bound(make(scale=(0.5, 2.0, 0.0)), levels)(x, level) - DATA.denoise(x, level)
        torch.testing.assert_close(several, weight * once)


def two_classes(x, t):
    mean = x.flatten(1).mean(1)
    return torch.stack([mean, -mean], 1)


def test_a_guidance_around_another_differentiates_through_it():
    levels = VP().levels(5)
    level, x = levels.stops[2], states(2, 1, 2, 2)
    slope = level.alpha * DATA.std**2 / DATA.spread(level) ** 2  # of the estimate in the state
    step = level.sigma**2 / level.alpha
    inner = ImageGuidance(lambda image, level: 0.3 * image.flatten(1).sum(1))
    outer = ImageGuidance(lambda image, level: -0.5 * (SEEN - image).square().flatten(1).sum(1), of=inner)
    x0 = DATA.denoise(x, level) + step * 0.3 * slope
    with torch.no_grad():
        torch.testing.assert_close(bound(inner, levels)(x, level), x0)
        torch.testing.assert_close(bound(outer, levels)(x, level), x0 + step * slope * (SEEN - x0))
        through = ImageGuidance(exact, of=ClassifierGuidance(two_classes, 1, of=inner))
        assert not torch.equal(bound(through, levels)(x, level), x0)


def test_pure_noise_and_clean_states_are_not_moved():
    levels = RectifiedFlow().levels(4)
    x = states(1, 1, 2, 2)
    for guidance in (ImageGuidance(exact, decode), ClassifierGuidance(two_classes, 0)):
        for level in (levels.start, levels.landing):
            assert torch.equal(bound(guidance, levels)(x, level), DATA.denoise(x, level))


def test_downsampling_compares_at_the_size_of_the_target():
    image = torch.nn.functional.interpolate(states(2, 3, 4, 4), size=(16, 8), mode="bicubic")
    small = torch.nn.functional.interpolate(image, size=(4, 4), mode="bicubic", antialias=True)
    level = VP().level(300.0)
    assert torch.equal(Downsampled(small)(image, level), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(Downsampled(small + 0.5)(image, level), torch.full((2,), -0.125 * 48).double())
    torch.testing.assert_close(Downsampled(small[:1])(image, level)[1], -0.5 * (small[0] - small[1]).square().sum())
    same = Downsampled(image[:, :, :, :8] + 1.0)(image, level)
    torch.testing.assert_close(same, torch.full((2,), -0.5 * image[0].numel()).double())


def distance(image, other):
    return (image - other).abs().flatten(1).mean(1)


def test_a_distance_is_a_guider():
    image, level = states(2, 3, 4, 4), VP().level(300.0)
    torch.testing.assert_close(Perceptual(distance, image[:1])(image, level), -distance(image, image[[0, 0]]))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    tiny = {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [1]}
    backbone = ldmkit.build("backbone", "unet", channels=3, num_classes=4, num_heads=1, **tiny)
    torch.nn.init.normal_(backbone.out[2].weight, std=0.1)
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "kl", channels=3, base_channels=32, channel_mult=[1, 1]),
        backbone=backbone,
        process=VP("cosine"),
        prediction="v",
        conditioner=ldmkit.build("conditioner", "class-index", classes=3),
    ).eval()


@pytest.mark.parametrize("guider", ["downsampled", "perceptual"])
def test_a_latent_model_samples_images_nearer_to_the_target_and_its_parameters_stay_alone(model, guider):
    target = 0.5 * torch.sin(torch.arange(3 * 8 * 8.0)).view(1, 3, 8, 8)
    wanted = torch.nn.functional.interpolate(target, scale_factor=2.0, mode="bicubic")
    guider = Downsampled(target) if guider == "downsampled" else Perceptual(distance, wanted)
    scale = 0.3 if isinstance(guider, Downsampled) else 400.0

    def sampled(guidance):
        batch = {"label": torch.tensor([0, 2])}
        z = model.sample(batch, size=(16, 16), levels=8, seed=1, guidance=guidance)
        assert not z.requires_grad
        return guider(model.decode(z), model.process.clean)

    guidance = ImageGuidance(guider, model.stage.decode, scale, of=Rescale(CFG(1.5), prediction="v"))
    assert (sampled(guidance) > sampled(CFG(1.5)) + 0.02).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_state_is_left_alone_and_no_graph_is_left_behind():
    denoiser = Denoiser(GaussianBackbone(VP(), "v", data=DATA), VP(), "v")
    levels, x = VP().levels(4), states(2, 1, 4, 4)
    before = x.clone()
    for guidance in (ImageGuidance(exact, decode), ClassifierGuidance(two_classes, 1)):
        with torch.no_grad():
            denoise = guidance(lambda cond: denoiser.bind(cond, levels), Conditioning(), None, levels)
            assert not denoise(x, levels.start).requires_grad
            assert not torch.is_grad_enabled()
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in denoiser.parameters())


LEVELS = VP().levels(4)


def ask(guidance):
    return bound(guidance, LEVELS)(states(3, 1, 4, 4), LEVELS.start)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ask(ImageGuidance(lambda image, level: image.sum())), ValueError, r"gives \(\) for 3 images"),
        (lambda: ask(ImageGuidance(exact, torch.no_grad()(decode))), ValueError, r"decode with model\.stage\.decode"),
        (lambda: ask(ImageGuidance(exact, scale=(1.0, 2.0))), ValueError, "'image' has 2 scales for 3 images"),
        (lambda: ask(ClassifierGuidance(two_classes, (0, 1))), ValueError, "'classifier' has 2 labels for 3 images"),
        (lambda: ImageGuidance(exact, scale=math.nan), ValueError, "'image' needs a finite scale"),
        (lambda: ClassifierGuidance(two_classes, 0, math.inf), ValueError, "'classifier' needs a finite scale"),
        (lambda: Downsampled(torch.zeros(3, 4, 4)), ValueError, r"shape \(B, C, h, w\)"),
        (lambda: Downsampled(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)), ValueError, r"in \[-1, 1\], got torch.uint8"),
        (lambda: ask(ImageGuidance(Downsampled(torch.zeros(2, 1, 2, 2)))), ValueError, "one for all or one each"),
        (lambda: ask(ImageGuidance(Downsampled(torch.zeros(3, 1, 8, 2)))), ValueError, "at most as large"),
        (lambda: ask(ImageGuidance(Perceptual(distance, torch.zeros(1, 1, 2, 2)))), ValueError, "resize the target"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
