"""The statistics of a first stage's latents."""

import pytest
import torch

import ldmkit
from ldmkit.latents import latent_statistics, moments
from ldmkit.process import VP, Level

BATCHES = [torch.rand(2, 3, 16, 24) * 2 - 1, torch.rand(1, 3, 8, 8) * 2 - 1, torch.rand(3, 3, 8, 16) * 2 - 1]


def kl(**options):
    return ldmkit.build(
        "first-stage", "kl", channels=2, base_channels=32, channel_mult=(1, 1), num_res_blocks=1, **options
    ).eval()


def test_streaming_equals_all_at_once():
    stage = ldmkit.build("first-stage", "pixel", scale=1.7)
    found = latent_statistics(stage, BATCHES)
    values = torch.cat([1.7 * batch.double().movedim(1, 0).flatten(1) for batch in BATCHES], dim=1)
    torch.testing.assert_close(torch.tensor(found.mean, dtype=torch.float64), values.mean(1), atol=1e-6, rtol=0)
    expected = values.std(1, correction=0)
    torch.testing.assert_close(torch.tensor(found.std, dtype=torch.float64), expected, atol=1e-6, rtol=0)
    assert found.overall == pytest.approx(float(values.std(correction=0)), abs=1e-6)
    assert (found.minimum, found.maximum) == pytest.approx((float(values.min()), float(values.max())), abs=1e-6)
    assert found.images == 6


def test_latents_that_are_there_are_measured_as_they_are():
    z = 3 + 2 * torch.randn(5, 4, 6, 3) * torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    whole, parts = moments([z]), moments(iter([z[:1], z[1:4], z[4:]]))
    assert (whole.images, parts.images) == (5, 5)
    for found in (whole, parts):
        assert found.mean == pytest.approx(z.mean(dim=(0, 2, 3)).tolist(), rel=1e-5)
        assert found.std == pytest.approx(z.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-5)
        assert found.overall == pytest.approx(float(z.std(correction=0)), rel=1e-6)
    assert moments([whole.rescaling * z]).overall == pytest.approx(1)


def test_the_recommended_rescaling_gives_unit_standard_deviation():
    torch.manual_seed(0)
    stage = kl(scale=0.3)
    before = latent_statistics(stage, BATCHES)
    assert abs(before.overall - 1) > 0.05
    stage.scale.mul_(before.rescaling)
    assert latent_statistics(stage, BATCHES).overall == pytest.approx(1, abs=1e-5)


def test_a_draw_widens_the_latents_and_the_mode_does_not():
    torch.manual_seed(0)
    stage = kl()
    drawn, mode = latent_statistics(stage, BATCHES), latent_statistics(stage, BATCHES, seed=None)
    assert drawn.overall > mode.overall
    assert latent_statistics(stage, BATCHES) == drawn


def test_how_images_are_batched_changes_nothing():
    torch.manual_seed(0)
    stage, images = kl(), torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole, parts = latent_statistics(stage, [images]), latent_statistics(stage, images.split([1, 3]))
    torch.testing.assert_close(torch.tensor(whole.std), torch.tensor(parts.std), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(whole.mean), torch.tensor(parts.mean), atol=1e-5, rtol=0)


def test_signal_to_noise_falls_with_the_level_and_grows_with_the_variance():
    process = VP()
    small = latent_statistics(ldmkit.build("first-stage", "pixel", scale=0.5), BATCHES)
    large = latent_statistics(ldmkit.build("first-stage", "pixel", scale=1.0), BATCHES)
    levels = [process.level(t) for t in (1, 300, 900)]
    assert [large.snr(level) for level in levels] == sorted((large.snr(level) for level in levels), reverse=True)
    assert large.snr(levels[1]) == pytest.approx(4 * small.snr(levels[1]))
    assert large.snr(Level(0.0, 1.0, 0.0)) == float("inf")


def test_no_images_and_broken_latents_are_refused():
    stage = ldmkit.build("first-stage", "pixel")
    with pytest.raises(ValueError, match="at least one image"):
        latent_statistics(stage, [])
    with pytest.raises(ValueError, match=r"latents are \(B, C, h, w\), got \(3,\)"):
        moments([torch.zeros(3)])
    with pytest.raises(ValueError, match="images 2 to 2 have latents that are not finite"):
        latent_statistics(stage, [BATCHES[0], torch.full((1, 3, 8, 8), float("inf"))])
    with pytest.raises(ValueError, match=r"all equal, to 0\.5"):
        _ = latent_statistics(stage, [torch.full((1, 3, 8, 8), 0.5)]).rescaling


def test_a_first_stage_of_low_precision_measures_images_as_they_are():
    stage = kl(scale=0.3)
    whole = latent_statistics(stage, BATCHES)
    for parameter in stage.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    assert latent_statistics(stage, BATCHES).overall == pytest.approx(whole.overall, rel=0.05)
