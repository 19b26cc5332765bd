"""Laws and known answers of the UNet's layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from parity.recipe_weights import recipe_weights, relative_error
from torch import Tensor, nn

from ldmkit.backbones.layers import (
    GEGLU,
    Attention,
    AttentionBlock,
    Downsample,
    GroupNorm,
    Memory,
    ResBlock,
    SpatialTransformer,
    TransformerBlock,
    Upsample,
    timestep_embedding,
)


def alive(module: nn.Module) -> nn.Module:
    """The module with random weights everywhere, the zero-initialised ones too."""
    module.load_state_dict(recipe_weights({key: value.shape for key, value in module.state_dict().items()}, seed=1))
    return module.eval()


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over (B, N, d), written out."""
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]), dim=2) @ v


def test_timestep_embedding_has_cosines_first() -> None:
    embedding = timestep_embedding(torch.tensor([0, 3]), 8)
    assert torch.equal(embedding[0], torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
    frequencies = [1.0, 0.1, 0.01, 0.001]
    expected = [math.cos(3 * f) for f in frequencies] + [math.sin(3 * f) for f in frequencies]
    assert torch.allclose(embedding[1], torch.tensor(expected), atol=1e-6)


def test_timestep_embedding_takes_fractional_times() -> None:
    whole, half = timestep_embedding(torch.tensor([7.0, 7.5]), 32)
    assert torch.equal(whole, timestep_embedding(torch.tensor([7]), 32)[0])
    assert torch.allclose(half[0], torch.tensor(math.cos(7.5)), atol=1e-6)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@torch.no_grad()
def test_group_norm_divides_by_the_deviation_with_its_own_eps(eps: float) -> None:
    x = 1e-3 * torch.randn(2, 64, 4, 4)
    grouped = x.double().view(2, 32, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    expected = ((grouped - mean) / (variance + eps).sqrt()).view(x.shape)
    assert relative_error(GroupNorm(64, eps)(x), expected) < 1e-5


def test_group_norm_computes_in_float32_for_bfloat16() -> None:
    # A mean far above the deviation: statistics rounded to bfloat16 would be off by a tenth of the deviation.
    x = (30 + torch.randn(2, 32, 8, 8)).bfloat16()
    out = GroupNorm(32).bfloat16()(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, GroupNorm(32)(x.float()).bfloat16())


def test_downsampling_convolution_pads_every_side() -> None:
    down = alive(Downsample(3))
    x = torch.randn(1, 3, 8, 8)
    symmetric = F.conv2d(F.pad(x, (1, 1, 1, 1)), down.op.weight, down.op.bias, stride=2)
    right_and_bottom = F.conv2d(F.pad(x, (0, 1, 0, 1)), down.op.weight, down.op.bias, stride=2)
    assert torch.allclose(down(x), symmetric, atol=1e-6)
    assert not torch.allclose(down(x), right_and_bottom, atol=1e-2)


def test_resampling_without_convolution_has_no_parameters_and_is_undone() -> None:
    up, down = Upsample(3, conv=False), Downsample(3, conv=False)
    x = torch.randn(2, 3, 4, 6)
    assert not [*up.parameters(), *down.parameters()]
    assert torch.equal(up(x)[:, :, ::2, 1::2], x)
    assert torch.allclose(down(up(x)), x)


def test_upsampling_convolves_after_the_nearest_neighbours() -> None:
    up = alive(Upsample(3))
    x = torch.randn(1, 3, 4, 4)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(up(x), up.conv(repeated), atol=1e-6)


def test_scale_comes_before_shift() -> None:
    block = alive(ResBlock(32, 32, 16, scale_shift_norm=True))
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 16)
    scale, shift = block.emb_layers(emb)[:, :, None, None].tensor_split(2, dim=1)
    h = block.in_layers(x)
    h = block.out_layers[0](h) * (1 + scale) + shift
    assert torch.allclose(block(x, block.project(emb)), x + block.out_layers[3](F.silu(h)), atol=1e-5)


def test_a_shared_shift_is_that_shift_for_every_sample() -> None:
    block = alive(ResBlock(32, 64, 16))
    x, emb = torch.randn(3, 32, 4, 4), torch.randn(1, 16)
    assert torch.allclose(block(x, block.project(emb)), block(x, block.project(emb.expand(3, -1))), atol=1e-6)


def test_resampling_block_resamples_both_branches_and_keeps_the_names() -> None:
    plain, up = ResBlock(32, 32, 16), ResBlock(32, 32, 16, resample=Upsample(32, conv=False))
    assert plain.state_dict().keys() == up.state_dict().keys()
    x, shift = torch.randn(2, 32, 4, 4), torch.zeros(1, 32, 1, 1)
    assert torch.equal(up(x, shift), F.interpolate(x, scale_factor=2.0))  # the other branch ends in zeros


def test_geglu_gates_with_the_second_half() -> None:
    layer = alive(GEGLU(8, 5))
    x = torch.randn(2, 3, 8)
    projected = layer.proj(x)
    gate = projected[..., 5:]
    normal_cdf = 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    assert torch.allclose(layer(x), projected[..., :5] * gate * normal_cdf, atol=1e-6)


@pytest.mark.parametrize("qkv_first", [False, True])
@torch.no_grad()
def test_attention_block_lays_out_its_channels_as_documented(qkv_first: bool) -> None:
    heads, d = 2, 16
    block = alive(AttentionBlock(32, heads, qkv_first))
    x = torch.randn(2, 32, 4, 6)
    channels = block.qkv(block.norm(x).flatten(2)).transpose(1, 2).split(d, dim=2)
    of_head = (lambda i: channels[i::heads]) if qkv_first else (lambda i: channels[3 * i : 3 * i + 3])
    out = torch.cat([explicit_attention(*of_head(head)) for head in range(heads)], dim=2)
    expected = x + block.proj_out(out.transpose(1, 2)).view(x.shape)
    assert relative_error(block(x), expected) < 1e-5


@torch.no_grad()
def test_attention_attends_by_heads_to_its_context() -> None:
    layer = alive(Attention(8, heads=2, context_dim=6))
    x, context = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    by_head = [explicit_attention(*(part[..., 4 * i : 4 * i + 4] for part in (q, k, v))) for i in range(2)]
    assert relative_error(layer(x, layer.read(context)), layer.to_out(torch.cat(by_head, dim=2))) < 1e-5


def test_attention_without_a_memory_attends_to_itself() -> None:
    layer = alive(Attention(8, heads=2))
    x = torch.randn(2, 5, 8)
    assert torch.equal(layer(x), layer(x, layer.read(x)))


def test_attention_to_one_token_has_a_closed_form() -> None:
    layer = alive(Attention(8, heads=2, context_dim=6))
    x, context = torch.randn(2, 5, 8), torch.randn(2, 1, 6)
    memory = layer.read(context)
    with torch.no_grad():
        answer = layer.read(context)
    assert isinstance(memory, Memory)
    assert isinstance(answer, Tensor)
    assert torch.allclose(layer(x, memory), layer(x, answer).expand(2, 5, 8), atol=1e-6)
    layer(x, memory).sum().backward()
    assert layer.to_q.weight.grad is not None  # zeros, not None: a distributed optimiser waits for every gradient


def test_disabled_self_attention_attends_to_the_context() -> None:
    block = alive(TransformerBlock(32, 2, context_dim=24, self_attention=False))
    x, context = torch.randn(2, 5, 32), torch.randn(2, 3, 24)
    assert block.attn1.to_k.weight.shape == (32, 24)
    first, second = block.read(context, None)
    x1 = x + block.attn1(block.norm1(x), first)
    x2 = x1 + block.attn2(block.norm2(x1), second)
    assert torch.allclose(block(x, (first, second)), x2 + block.ff(block.norm3(x2)), atol=1e-6)


def test_linear_and_convolution_projections_are_one_function() -> None:
    conv, linear = SpatialTransformer(32, 2, 24), SpatialTransformer(32, 2, 24, linear=True)
    weights = alive(conv).state_dict()
    linear.load_state_dict({key: value.squeeze() for key, value in weights.items()})
    x, context = torch.randn(2, 32, 4, 6), torch.randn(2, 3, 24)
    memories = conv.read(context, None)
    assert torch.allclose(conv(x, memories), linear(x, memories), atol=1e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_memory_format_is_kept_and_changes_nothing(linear: bool) -> None:
    transformer = alive(SpatialTransformer(32, 2, 24, linear=linear))
    attention = alive(AttentionBlock(32, 2))
    x = torch.randn(2, 32, 4, 6)
    memories = transformer.read(torch.randn(2, 3, 24), None)
    for out, again in (
        (transformer(x, memories), transformer(x.contiguous(memory_format=torch.channels_last), memories)),
        (attention(x), attention(x.contiguous(memory_format=torch.channels_last))),
    ):
        assert out.is_contiguous()
        assert again.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(out, again, atol=1e-5)


def test_layers_that_should_start_as_the_identity_do() -> None:
    x = torch.randn(2, 32, 4, 4)
    transformer = SpatialTransformer(32, 2, 24)
    assert torch.equal(ResBlock(32, 32, 16)(x, torch.randn(2, 32, 1, 1)), x)
    assert torch.equal(AttentionBlock(32, 2)(x), x)
    assert torch.equal(transformer(x, transformer.read(torch.randn(2, 3, 24), None)), x)
