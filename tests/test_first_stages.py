"""Laws of the first stages. Equality with the original is in ``parity/test_first_stages.py``."""

import inspect

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldmkit.first_stages import KL, VQ, Gaussian, Pixel, codebook_usage
from ldmkit.first_stages.autoencoder import Attention, Downsample, ResBlock, Upsample
from ldmkit.first_stages.vq import Codebook, nearest_rows

TINY = {"base_channels": 32, "num_res_blocks": 1, "resolution": 16}


def kl(**options):
    return KL(**{"channels": 3, "channel_mult": (1, 2), **TINY, **options}).eval().requires_grad_(False)


def vq(**options):
    """A small codebook whose codes are spread like its latents: a fresh one holds them all near zero."""
    options = {"channels": 3, "codebook_size": 16, "channel_mult": (1, 2), **TINY, **options}
    stage = VQ(**options).eval().requires_grad_(False)
    stage.quantize.embedding.weight.copy_(0.3 * torch.randn(stage.codebook_size, stage.channels))
    return stage


def pixel(**options):
    return Pixel(**options)


every_stage = pytest.mark.parametrize("make", [kl, vq, pixel])
trained_stage = pytest.mark.parametrize("make", [kl, vq])


def images(batch=2, height=8, width=12):
    return torch.rand(batch, 3, height, width) * 2 - 1


def close(a, b, tolerance=1e-5):
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("channel_mult", [(1,), (1, 2), (1, 1, 2), (1, 1, 1, 1)])
@trained_stage
def test_shapes_follow_the_factor(make, channel_mult, batch):
    stage = make(channel_mult=channel_mult)
    factor = 2 ** (len(channel_mult) - 1)
    z = stage.encode(images(batch, 2 * factor, 3 * factor))
    assert (stage.factor, stage.multiple) == (factor, factor)
    assert z.shape == (batch, stage.channels, 2, 3)
    assert stage.decode(z).shape == (batch, stage.image_channels, 2 * factor, 3 * factor)


@pytest.mark.parametrize("image_channels", [1, 4])
@trained_stage
def test_image_and_latent_channels_are_free(make, image_channels):
    stage = make(image_channels=image_channels, channels=5, z_channels=7)
    z = stage.encode(torch.randn(1, image_channels, 4, 4))
    assert z.shape == (1, 5, 2, 2)
    assert stage.decode(z).shape == (1, image_channels, 4, 4)


@every_stage
def test_scale_is_applied_once_and_undone_once(make):
    plain, scaled, image = make(), make(scale=0.25), images()
    scaled.load_state_dict({**plain.state_dict(), "scale": torch.tensor(0.25)})
    z = plain.encode(image)
    assert torch.equal(scaled.encode(image), 0.25 * z)
    assert torch.equal(scaled.decode(0.25 * z), plain.decode(z))


@every_stage
def test_scale_of_a_file_wins_over_the_keyword(make):
    stage, image = make(scale=2.0), images()
    raw = stage.encode(image) / 2
    assert stage.scale.dtype == torch.float32
    assert stage.scale.shape == ()
    stage.load_state_dict({**stage.state_dict(), "scale": torch.tensor(0.5)})
    assert torch.equal(stage.encode(image), 0.5 * raw)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
@every_stage
def test_scale_that_cannot_be_undone_is_refused(make, scale):
    with pytest.raises(ValueError, match=r"first stage '(kl|vq|pixel)' needs a positive, finite scale"):
        make(scale=scale)


@every_stage
def test_constructor_keywords_are_attributes(make):
    stage = make()
    for keyword in inspect.signature(type(stage)).parameters:
        assert hasattr(stage, keyword), keyword
    assert float(make(scale=0.5).scale) == 0.5


@trained_stage
def test_lists_of_a_json_file_become_tuples(make):
    stage = make(channel_mult=[1, 2], attn_resolutions=[8])
    assert (stage.channel_mult, stage.attn_resolutions) == ((1, 2), (8,))


@trained_stage
def test_an_image_is_the_same_alone_and_in_any_batch(make):
    stage, image = make(), images(3)
    z = stage.encode(image)
    assert close(stage.encode(image[1:2]), z[1:2])
    assert close(stage.decode(z[[2, 1]]), stage.decode(z)[[2, 1]])


@trained_stage
def test_memory_format_passes_through(make):
    stage, image = make(), images()
    z = stage.encode(image)
    last = stage.encode(image.to(memory_format=torch.channels_last))
    assert z.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert close(last, z)
    assert stage.decode(z).is_contiguous()
    assert stage.decode(last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@trained_stage
def test_precision_is_that_of_the_weights(make, dtype):
    stage = make().to(dtype)
    z = stage.encode(images().to(dtype))
    assert z.dtype == dtype
    assert stage.decode(z).dtype == dtype


@trained_stage
def test_compiles_without_graph_breaks(make):
    stage, image = make(), images()
    z = stage.encode(image)
    assert close(torch.compile(stage.encode, backend="eager", fullgraph=True)(image), z)
    assert close(torch.compile(stage.decode, backend="eager", fullgraph=True)(z), stage.decode(z))


WRONG_IMAGES = {
    "rank": (torch.zeros(3, 8, 8), r"shape \(B, 3, height, width\), got \(3, 8, 8\).*unsqueeze"),
    "channels": (torch.zeros(1, 1, 8, 8), r"3 channels in dimension 1, got shape \(1, 1, 8, 8\)"),
    "channels-last by mistake": (torch.zeros(1, 8, 8, 3), r"3 channels in dimension 1.*permute"),
    "bytes": (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"floating-point images in \[-1, 1\], got torch.uint8"),
    "empty": (torch.zeros(1, 3, 0, 8), r"got 0 x 8"),
}


@pytest.mark.parametrize("wrong", WRONG_IMAGES)
@every_stage
def test_wrong_images_are_refused_before_computing(make, wrong):
    image, message = WRONG_IMAGES[wrong]
    with pytest.raises(ValueError, match=rf"first stage '{make.__name__}'.*{message}"):
        make().encode(image)


@trained_stage
def test_sides_that_are_no_multiples_are_refused_with_the_next_that_are(make):
    with pytest.raises(ValueError, match="multiples of 2, got 9 x 8: crop or pad to 10 x 8"):
        make().encode(images(1, 9, 8))


@trained_stage
def test_another_precision_than_the_weights_is_refused(make):
    stage, image = make(), images()
    with pytest.raises(ValueError, match=r"weights in torch.float32 and got images in torch.float64: cast"):
        stage.encode(image.double())
    with pytest.raises(ValueError, match=r"weights in torch.float32 and got latents in torch.bfloat16: cast"):
        stage.decode(stage.encode(image).bfloat16())


@trained_stage
def test_autocast_may_mix_precisions(make):
    stage, image = make(), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = stage.encode(image.bfloat16())
    assert close(z.float(), stage.encode(image), tolerance=0.1)


@every_stage
def test_wrong_latents_are_refused_before_computing(make):
    stage = make()
    with pytest.raises(ValueError, match=r"latents of shape \(B, 3, height, width\)"):
        stage.decode(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="latents of 3 channels"):
        stage.decode(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ValueError, match="codes go to from_indices"):
        stage.decode(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_channels": 48}, "32 groups.*multiple of 32"),
        ({"channel_mult": ()}, "positive base_channels"),
        ({"num_res_blocks": 0}, "positive base_channels"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"attention": False, "attn_resolutions": (8,)}, "attention=False contradicts"),
    ],
)
@trained_stage
def test_options_that_make_no_network_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_downsampling_pads_right_and_bottom_only():
    layer = Downsample(1)
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    halved = layer(torch.ones(1, 1, 4, 6))
    assert torch.equal(halved[0, 0], torch.tensor([[9.0, 9.0, 6.0], [6.0, 6.0, 4.0]]))


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 4, 3, 5)])
def test_upsampling_is_nearest_doubling_then_convolution(shape):
    layer, x = Upsample(4), torch.randn(shape)
    expected = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_attention_is_one_head_over_all_positions():
    layer, x = Attention(32), torch.randn(2, 32, 3, 5)
    q, k, v = (project(layer.norm(x)).flatten(2) for project in (layer.q, layer.k, layer.v))
    weights = (q.transpose(1, 2) @ k / 32**0.5).softmax(dim=2)
    attended = (v @ weights.transpose(1, 2)).view_as(x)
    assert torch.allclose(layer(x), x + layer.proj_out(attended), atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_never_holds_a_matrix_of_all_pairs_of_positions(memory_format):
    layer, x = Attention(32), torch.randn(1, 32, 3, 5).to(memory_format=memory_format)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        only_fused = layer(x)
    assert torch.allclose(only_fused, layer(x), atol=1e-6)


@pytest.mark.parametrize("layer", [ResBlock(32, 64, 0.0), Attention(32), Upsample(2), Downsample(2)])
def test_gradients_are_exact(layer):
    channels = next(p for p in layer.parameters() if p.ndim == 4).shape[1]
    x = torch.randn(1, channels, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.double(), x)


@trained_stage
def test_every_norm_has_eps_1e_6(make):
    norms = [module for module in make(attn_resolutions=(16,)).modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(32, 1e-6)}


def attending(stage):
    return {key.removesuffix(".q.weight") for key in stage.state_dict() if key.endswith(".q.weight")}


@trained_stage
def test_the_middle_attends_unless_attention_is_off(make):
    assert attending(make()) == {"encoder.mid.attn_1", "decoder.mid.attn_1"}
    assert attending(make(attention=False)) == set()


@trained_stage
def test_attn_resolutions_are_pixels_counted_from_resolution(make):
    middle = {"encoder.mid.attn_1", "decoder.mid.attn_1"}
    second = {"encoder.down.1.attn.0", "decoder.up.1.attn.0", "decoder.up.1.attn.1"}
    assert attending(make(attn_resolutions=(8,), resolution=16)) == middle | second
    assert attending(make(attn_resolutions=(32,), resolution=64)) == middle | second
    with pytest.raises(ValueError, match=r"attn_resolutions names \[2\] pixels.*levels are at \(16, 8\)"):
        make(attn_resolutions=(2,), resolution=16)


@trained_stage
def test_images_of_any_size_attend_at_the_same_levels(make):
    stage = make(attn_resolutions=(8,), resolution=16)
    calls = []
    for module in stage.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda module, args, result: calls.append(result.shape[2:]))
    stage.encode(images(1, 32, 8))
    assert calls == [(16, 4), (16, 4)]


@trained_stage
def test_dropout_acts_in_training_only(make):
    stage, image = make(dropout=0.5), images()
    assert torch.equal(stage.encode(image), stage.encode(image))
    assert not torch.equal(stage.train().encode(image), stage.encode(image))


@trained_stage
def test_training_reaches_every_parameter(make):
    stage, image = make().train().requires_grad_(True), images()
    reconstruction, latent = stage(image, torch.randn(2, 3, 4, 6))
    penalty = latent.kl() if isinstance(latent, Gaussian) else latent.loss
    ((reconstruction - image).square().mean() + penalty.mean()).backward()
    assert [name for name, p in stage.named_parameters() if p.grad is None or not p.grad.any()] == []


@trained_stage
def test_training_reconstructs_through_the_same_networks(make):
    stage, image = make(scale=0.5), images()
    reconstruction, _ = stage(image)
    assert close(reconstruction, stage.decode(stage.encode(image)))


def test_kl_divergence_equals_its_monte_carlo_estimate():
    posterior = Gaussian(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    q, p = Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)
    z = q.sample((4000,))
    draws = (q.log_prob(z) - p.log_prob(z)).sum(dim=(2, 3, 4))
    standard_error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - posterior.kl()).abs() < 4 * standard_error).all()


def test_kl_divergence_of_the_standard_normal_is_zero():
    zeros = torch.zeros(2, 3, 4, 4)
    assert torch.equal(Gaussian(zeros, zeros).kl(), torch.zeros(2))


def test_log_variance_is_clamped():
    posterior = Gaussian.from_moments(torch.tensor([0.0, 0.0, -99.0, 99.0]).view(1, 4, 1, 1))
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]


def test_kl_encodes_the_mode_or_the_draw_of_given_noise():
    stage, image, noise = kl(scale=0.5), images(), torch.randn(2, 3, 4, 6)
    posterior = stage.posterior(image)
    assert torch.equal(stage.encode(image), 0.5 * posterior.mean)
    assert torch.equal(stage.encode(image, noise), 0.5 * (posterior.mean + posterior.std * noise))
    assert torch.equal(stage.encode(image, noise), stage.encode(image, noise))
    assert torch.equal(stage.encode(image, torch.zeros_like(noise)), stage.encode(image))


def test_noise_shared_between_images_is_refused():
    with pytest.raises(ValueError, match=r"posterior of shape \(2, 3, 4, 6\) needs noise of that shape"):
        kl().encode(images(), torch.randn(1, 3, 4, 6))


def test_vq_diffuses_the_latent_before_quantisation():
    stage = vq()
    z = stage.encode(images())
    assert not close(stage.nearest_code(z), z, tolerance=1e-2)
    assert torch.equal(stage.decode(z), stage.decode(stage.nearest_code(z)))
    assert torch.equal(stage.decode(z), stage.decode_unquantized(stage.nearest_code(z)))
    assert not close(stage.decode_unquantized(z), stage.decode(z), tolerance=1e-2)


def test_vq_leaves_nothing_to_sample():
    stage, image = vq(), images()
    assert torch.equal(stage.encode(image, torch.randn(2, 3, 4, 6)), stage.encode(image))


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_codes_and_indices_are_inverse(scale):
    stage = vq(scale=scale)
    indices = torch.arange(stage.codebook_size).view(2, 2, 4)
    assert torch.equal(stage.to_indices(stage.from_indices(indices)), indices)


def test_indices_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"int64 of shape \(B, height, width\), got torch.float32 of shape \(4,\)"):
        vq().from_indices(torch.zeros(4))


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_quantising_twice_is_quantising_once(scale):
    stage = vq(scale=scale)
    once = stage.nearest_code(torch.randn(2, 3, 4, 5))
    assert torch.equal(stage.nearest_code(once), once)


def test_scaled_latents_are_quantised_in_the_units_of_the_codebook():
    plain, scaled = vq(), vq(scale=0.25)
    scaled.load_state_dict({**plain.state_dict(), "scale": torch.tensor(0.25)})
    z = torch.randn(2, 3, 4, 5)
    assert torch.equal(scaled.nearest_code(0.25 * z), 0.25 * plain.nearest_code(z))


def test_the_nearest_code_is_nearest_by_squared_distance():
    """More rows than one chunk of distances takes."""
    z, codes = torch.randn(700, 4), torch.randn(8192, 4)
    chosen = (z - codes[nearest_rows(z, codes)]).double().norm(dim=1)
    assert torch.allclose(chosen, torch.cdist(z.double(), codes.double()).min(dim=1).values, atol=1e-6)


def test_the_lowest_of_equal_codes_wins():
    codes = torch.tensor([[2.0, 2.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert nearest_rows(torch.tensor([[0.9, 0.0], [0.0, 0.0]]), codes).tolist() == [1, 1]


def test_autocast_does_not_move_a_latent_to_another_code():
    z, codes = torch.randn(500, 3), torch.randn(500, 3)
    expected = torch.cdist(z, codes).argmin(dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = (codes.square().sum(dim=1) - 2 * z @ codes.T).argmin(dim=1)
        assert torch.equal(nearest_rows(z, codes), expected)
    assert not torch.equal(rounded, expected)


def test_gradient_goes_straight_through_quantisation():
    stage = vq(scale=0.5)
    z, direction = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    quantized = stage.nearest_code(z)
    (gradient,) = torch.autograd.grad((quantized * direction).sum(), z)
    assert torch.equal(quantized.detach(), stage.from_indices(stage.to_indices(z.detach())))
    assert torch.allclose(gradient, direction)


def codebook_gradients(beta_on):
    """(of the latents, of the codes) for the codebook loss at one place, beta 0.25."""
    torch.manual_seed(1)
    codebook = Codebook(8, 3, beta=0.25, beta_on=beta_on)
    z = torch.randn(2, 3, 2, 2, requires_grad=True)
    return torch.autograd.grad(codebook(z).loss.sum(), [z, codebook.embedding.weight])


def test_beta_weighs_the_codebook_or_the_commitment_term():
    latents, codes = codebook_gradients("codebook")
    latents_as_in_paper, codes_as_in_paper = codebook_gradients("commitment")
    assert torch.allclose(latents_as_in_paper, 0.25 * latents)
    assert torch.allclose(codes, 0.25 * codes_as_in_paper)
    with pytest.raises(ValueError, match="beta_on 'codebook' or 'commitment', got 'both'"):
        vq(beta_on="both")


@pytest.mark.parametrize("beta_on", ["codebook", "commitment"])
def test_codebook_loss_is_one_plus_beta_times_the_squared_error(beta_on):
    stage, z = vq(beta=0.5, beta_on=beta_on), torch.randn(2, 3, 4, 5)
    error = (stage.nearest_code(z) - z).square().mean(dim=(1, 2, 3))
    assert torch.allclose(stage.quantize(z).loss, 1.5 * error)


@pytest.mark.parametrize(
    ("indices", "used", "perplexity"),
    [
        ([[3, 3], [3, 3]], 1, 1.0),
        ([[0, 1], [2, 3]], 4, 4.0),
        ([0, 0, 0, 1], 2, 4 / 27**0.25),
    ],
)
def test_codebook_usage_has_known_answers(indices, used, perplexity):
    usage = codebook_usage(torch.tensor(indices), 6)
    assert int(usage.used) == used
    assert float(usage.perplexity) == pytest.approx(perplexity)


def test_pixel_is_the_identity_at_every_size():
    stage, image = Pixel(), images(2, 7, 5)
    assert (stage.factor, stage.multiple, stage.channels, stage.image_channels) == (1, 1, 3, 3)
    assert torch.equal(stage.encode(image), image)
    assert torch.equal(stage.decode(stage.encode(image)), image)
    assert list(stage.parameters()) == []


@pytest.mark.parametrize(
    ("build", "message"), [(lambda: Pixel(channels=0), "1 channel"), (lambda: VQ(codebook_size=0), "codebook_size")]
)
def test_sizes_below_one_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
