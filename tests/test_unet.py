"""Laws of the UNet: what it is told, what it ignores, and that binding it changes nothing."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from parity.recipe_weights import relative_error
from torch import Tensor, nn

from ldmkit.backbones import unet as unet_module
from ldmkit.backbones.layers import GroupNorm, SpatialTransformer
from ldmkit.backbones.unet import UNet
from ldmkit.conditioning import Conditioning

TINY: dict[str, Any] = {
    "channels": 3,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "num_heads": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "unconditional": {},
    "head width": {"num_heads": None, "head_channels": 16},
    "context": {"context_dim": 24},
    "context and label": {"context_dim": 24, "num_classes": 10},
    "vector": {"vector_dim": 5, "qkv_first": True},
    "label, residual resampling": {"num_classes": 10, "resblock_updown": True, "scale_shift_norm": True},
    "concat, no-conv resampling": {"concat_channels": 2, "conv_resample": False},
    "depth per level, linear": {
        "context_dim": 24,
        "attention_resolutions": (1, 2),
        "transformer_depth": (2, 1),
        "linear_projections": True,
    },
    "no self-attention": {
        "context_dim": 24,
        "attention_resolutions": (1, 2),
        "disable_self_attention": (True, False),
    },
    "checkpoint": {"context_dim": 24, "checkpoint": True},
}
TIMES = (999.0, 500.0, 0.25)


@torch.no_grad()
def made(**options: Any) -> UNet:
    """A tiny UNet with random weights everywhere, the zero-initialised ones too."""
    unet = UNet(**TINY | options)
    for parameter in unet.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        noise = torch.randn_like(parameter) / fan_in**0.5
        parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return unet.eval()


def state(unet: UNet, batch: int = 2, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(batch, unet.channels + unet.concat_channels, height, width)


def told(unet: UNet, batch: int = 2, tokens: int = 5, masked: bool = False) -> Conditioning:
    """Random values for every slot that the UNet reads beside concat."""
    mask = torch.rand(batch, tokens) < 0.6
    mask[:, 0] = True
    slots: dict[str, Tensor] = {}
    if "context" in unet.accepts:
        slots["context"] = torch.randn(batch, tokens, unet.accepts["context"])
        slots |= {"context_mask": mask} if masked else {}
    if "vector" in unet.accepts:
        slots["vector"] = torch.randn(batch, unet.accepts["vector"])
    if "label" in unet.accepts:
        slots["label"] = torch.randint(unet.accepts["label"], (batch,))
    return Conditioning(**slots)


def predict(unet: UNet, x: Tensor, t: float | Tensor, cond: Conditioning) -> Tensor:
    times = t if isinstance(t, Tensor) else torch.full((x.shape[0],), t)
    out: Tensor = unet(x, times, **cond.filled())
    return out


# Binding


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_bound_equals_forward(name: str, masked: bool) -> None:
    unet = made(**VARIANTS[name])
    x, cond = state(unet), told(unet, masked=masked)
    bound = unet.bind(cond, TIMES)
    for t in (*TIMES, 731.5):
        assert relative_error(bound(x, t), predict(unet, x, t, cond)) < 1e-5


@pytest.mark.parametrize("times", [(), TIMES])
@torch.inference_mode()
def test_times_that_were_not_announced_give_the_same_result(times: tuple[float, ...]) -> None:
    unet = made(num_classes=10)
    x, cond = state(unet), told(unet)
    assert relative_error(unet.bind(cond, times)(x, 42.0), unet.bind(cond, [42])(x, 42.0)) < 1e-5


@torch.inference_mode()
def test_a_table_over_its_cap_is_computed_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = made(num_classes=10)
    x, cond = state(unet), told(unet)
    bound = unet.bind(cond, TIMES)
    monkeypatch.setattr(unet_module, "TABLE_BYTES", 1000)
    frugal = unet.bind(cond, TIMES)
    assert len(bound.table) == len(TIMES)
    assert not frugal.table
    assert relative_error(frugal(x, 500.0), bound(x, 500.0)) < 1e-5


def test_one_context_token_gives_what_the_training_path_gives() -> None:
    unet = made(context_dim=24)
    x, cond = state(unet), told(unet, tokens=1)
    training = predict(unet, x, 500.0, cond).detach()
    with torch.no_grad():
        assert relative_error(predict(unet, x, 500.0, cond), training) < 1e-5
        assert relative_error(unet.bind(cond, TIMES)(x, 500.0), training) < 1e-5


def test_binding_and_calling_store_nothing_on_the_module() -> None:
    unet = made(context_dim=24, num_classes=10)

    def everything() -> dict[str, dict[str, int]]:
        inner = {
            f"{name}.{key}": dict.fromkeys(value)
            for name, module in unet.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, dict)
        }
        outer = {name: {k: id(v) for k, v in vars(module).items()} for name, module in unet.named_modules()}
        return outer | inner

    before = everything()
    cond = told(unet, masked=True)
    unet.bind(cond, TIMES)(state(unet), 500.0)
    predict(unet, state(unet), 500.0, cond)
    assert everything() == before


def test_two_threads_bind_one_module() -> None:
    unet = made(context_dim=24, num_classes=10)
    jobs = [(state(unet, height=8 + 4 * i), told(unet, tokens=3 + i)) for i in range(4)]

    @torch.inference_mode()
    def run(job: tuple[Tensor, Conditioning]) -> list[Tensor]:
        bound = unet.bind(job[1], TIMES)
        return [bound(job[0], t) for t in TIMES]

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(run, jobs))
    assert all(
        torch.equal(a, b) for one, two in zip(alone, together, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_gradients_flow_to_the_state_through_a_binding() -> None:
    unet = made(context_dim=24)
    x, cond = state(unet).requires_grad_(), told(unet)
    bound = unet.bind(cond, TIMES)
    for _ in range(2):  # the caches serve a second backward pass
        (through,) = torch.autograd.grad(bound(x, 500.0).square().sum(), x)
    (direct,) = torch.autograd.grad(predict(unet, x, 500.0, cond).square().sum(), x)
    assert relative_error(through, direct) < 1e-5


def test_a_binding_refuses_another_batch_and_a_second_conditioning() -> None:
    unet = made(num_classes=10)
    bound = unet.bind(told(unet, batch=2), TIMES)
    with pytest.raises(ValueError, match="bound to a conditioning of 2 samples, got 3"):
        bound(state(unet, batch=3), 500.0)
    with pytest.raises(ValueError, match="already told"):
        unet(state(unet), bound.told(500.0), label=torch.tensor([1, 2]))


# Batches, shapes, formats, precisions


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_sample_is_the_same_alone_and_in_a_batch(name: str) -> None:
    unet = made(**VARIANTS[name])
    x, t, cond = state(unet, 3, 8, 12), torch.tensor([3.0, 600.0, 999.0]), told(unet, 3, masked=True)
    together = predict(unet, x, t, cond)
    assert together.shape == (3, unet.channels, 8, 12)
    for i in range(3):
        alone = predict(unet, x[i : i + 1], t[i : i + 1], cond.map(lambda value, i=i: value[i : i + 1]))
        assert relative_error(alone[0], together[i]) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_channels_last_flows_through_and_changes_nothing(name: str) -> None:
    unet = made(**VARIANTS[name])
    x, cond = state(unet), told(unet)
    out = predict(unet, x, 500.0, cond)
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    again = predict(unet, x.contiguous(memory_format=torch.channels_last), 500.0, cond)
    assert again.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(again, out) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_bfloat16_weights_run_and_stay_close(name: str) -> None:
    unet = made(**VARIANTS[name])
    x, cond = state(unet), told(unet, masked=True)
    exact = predict(unet, x, 500.0, cond)
    unet.bfloat16()
    out = predict(unet, x.bfloat16(), 500.0, cond)
    assert out.dtype == unet.bind(cond, TIMES)(x.bfloat16(), 500.0).dtype == torch.bfloat16
    assert relative_error(out, exact) < 0.1  # bfloat16 keeps 8 bits; errors of 2 % are usual here


@torch.no_grad()
def test_integer_and_float_times_are_one() -> None:
    unet = made()
    x = state(unet)
    assert torch.equal(unet(x, torch.tensor([7, 981])), unet(x, torch.tensor([7.0, 981.0])))


# What it is told


@torch.no_grad()
def test_masked_tokens_do_not_matter() -> None:
    unet = made(context_dim=24)
    x, cond = state(unet), told(unet, masked=True)
    assert cond.context is not None
    assert cond.context_mask is not None
    noise = torch.where(cond.context_mask[:, :, None], 0.0, torch.randn_like(cond.context))
    other = Conditioning(context=cond.context + noise, context_mask=cond.context_mask)
    assert torch.equal(predict(unet, x, 500.0, cond), predict(unet, x, 500.0, other))
    unmasked = Conditioning(context=cond.context)
    assert relative_error(predict(unet, x, 500.0, unmasked), predict(unet, x, 500.0, cond)) > 1e-3


@torch.no_grad()
def test_hidden_padding_equals_a_shorter_context() -> None:
    unet = made(context_dim=24)
    x, short = state(unet), told(unet, tokens=3)
    assert short.context is not None
    padded = Conditioning(
        context=nn.functional.pad(short.context, (0, 0, 0, 4)),
        context_mask=torch.arange(7).expand(2, 7) < 3,
    )
    assert relative_error(predict(unet, x, 500.0, padded), predict(unet, x, 500.0, short)) < 1e-5


@torch.no_grad()
def test_a_sample_whose_tokens_are_all_masked_is_finite() -> None:
    unet = made(context_dim=24)
    mask = torch.tensor([[True] * 5, [False] * 5])
    cond = Conditioning(context=told(unet).context, context_mask=mask)
    x = state(unet)
    assert predict(unet, x, 500.0, cond).isfinite().all()
    assert unet.bind(cond, TIMES)(x, 500.0).isfinite().all()


@pytest.mark.parametrize("slot", ["context", "vector", "label"])
@torch.no_grad()
def test_every_slot_matters(slot: str) -> None:
    unet = made(**{"context": {"context_dim": 24}, "vector": {"vector_dim": 5}, "label": {"num_classes": 10}}[slot])
    x = state(unet)
    one, two = (
        Conditioning(**{slot: value})
        for value in {
            "context": torch.randn(2, 2, 5, 24),
            "vector": torch.randn(2, 2, 5),
            "label": torch.tensor([[1, 2], [3, 4]]),
        }[slot]
    )
    assert relative_error(predict(unet, x, 500.0, one), predict(unet, x, 500.0, two)) > 1e-3


def test_vector_embedding_has_the_published_names() -> None:
    names = {key for key in made(vector_dim=5).state_dict() if key.startswith("label_emb")}
    assert names == {f"label_emb.0.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}


def test_what_it_reads_and_needs_is_declared() -> None:
    unet = made(context_dim=24, num_classes=10, concat_channels=2, channel_mult=(1, 2, 2))
    assert unet.channels == 3
    assert unet.accepts == {"context": 24, "label": 10, "concat": 2}
    assert unet.multiple == 4


@pytest.mark.parametrize("name", VARIANTS)
def test_options_stay_readable_and_rebuild_the_same_network(name: str) -> None:
    unet = made(**VARIANTS[name])
    options = {keyword: getattr(unet, keyword) for keyword in inspect.signature(UNet).parameters}
    given = TINY | VARIANTS[name]
    assert {keyword: options[keyword] for keyword in given} == given
    UNet(**options).load_state_dict(unet.state_dict())


# Traps


@pytest.mark.parametrize("options", [{}, {"context_dim": 24}])
@torch.no_grad()
def test_head_count_changes_the_output_and_no_shape(options: dict[str, Any]) -> None:
    one, two = made(**options, num_heads=1), made(**options, num_heads=2)
    two.load_state_dict(one.state_dict())
    x, cond = state(one), told(one)
    assert relative_error(predict(one, x, 500.0, cond), predict(two, x, 500.0, cond)) > 1e-3


def test_head_width_is_a_count_per_level() -> None:
    unet = UNet(**TINY | {"num_heads": None, "head_channels": 16, "attention_resolutions": (1, 2), "context_dim": 8})
    heads = {m.norm.weight.numel(): m.transformer_blocks[0].attn1.heads for m in transformers(unet)}
    assert heads == {32: 2, 64: 4}


def transformers(unet: UNet) -> list[SpatialTransformer]:
    return [module for module in unet.modules() if isinstance(module, SpatialTransformer)]


def test_norm_eps_is_smaller_at_the_entry_of_transformers_alone() -> None:
    unet = made(context_dim=24)
    entries = {id(module.norm) for module in transformers(unet)}
    norms = [module for module in unet.modules() if isinstance(module, GroupNorm)]
    assert len(norms) > len(entries) > 0
    assert all(norm.eps == (1e-6 if id(norm) in entries else 1e-5) for norm in norms)


@pytest.mark.parametrize(
    ("factors", "stages"),
    [
        ((1,), {"input_blocks.1", "output_blocks.2", "output_blocks.3"}),
        ((2,), {"input_blocks.3", "output_blocks.0", "output_blocks.1"}),
    ],
)
def test_attention_resolutions_are_downsampling_factors(factors: tuple[int, ...], stages: set[str]) -> None:
    keys = UNet(**TINY | {"attention_resolutions": factors}).state_dict()
    assert {key.split(".1.qkv")[0] for key in keys if key.endswith("qkv.weight")} == stages | {"middle_block"}


def test_factors_that_are_not_reached_are_ignored() -> None:
    reached, beyond = (UNet(**TINY | {"attention_resolutions": factors}) for factors in ((), (32, 16)))
    assert reached.state_dict().keys() == beyond.state_dict().keys()


@torch.no_grad()
def test_a_new_network_predicts_zero() -> None:
    unet = UNet(**TINY, context_dim=24)
    assert not predict(unet, state(unet), 500.0, told(unet)).any()


# Training


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_parameter(name: str) -> None:
    unet = made(**VARIANTS[name])
    predict(unet, state(unet), torch.tensor([3.0, 600.0]), told(unet)).square().sum().backward()
    lost = [key for key, parameter in unet.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert lost == []


@pytest.mark.parametrize("options", [{}, {"context_dim": 24}, {"num_classes": 10, "resblock_updown": True}])
def test_activation_checkpointing_changes_neither_values_nor_gradients(options: dict[str, Any]) -> None:
    plain, frugal = made(**options).train(), made(**options, checkpoint=True).train()
    frugal.load_state_dict(plain.state_dict())
    x, t, cond = state(plain), torch.tensor([3.0, 600.0]), told(plain)
    outs = [predict(unet, x, t, cond) for unet in (plain, frugal)]
    for out in outs:
        out.square().sum().backward()
    assert torch.equal(*outs)
    for one, two in zip(plain.parameters(), frugal.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_activation_checkpointing_keeps_fewer_activations() -> None:
    def kept(checkpoint: bool) -> int:
        unet = made(context_dim=24, checkpoint=checkpoint)
        x, cond, sizes = state(unet, height=16, width=16), told(unet), []
        with torch.autograd.graph.saved_tensors_hooks(lambda v: sizes.append(v.numel()) or v, lambda v: v):
            predict(unet, x, 500.0, cond)
        return sum(sizes)

    assert kept(True) < kept(False) / 3


def test_dropout_acts_in_training_alone() -> None:
    unet = made(dropout=0.5, context_dim=24)
    x, cond = state(unet), told(unet)
    assert torch.equal(predict(unet, x, 500.0, cond), predict(unet, x, 500.0, cond))
    unet.train()
    assert not torch.equal(predict(unet, x, 500.0, cond), predict(unet, x, 500.0, cond))


# Compilation


@pytest.mark.parametrize("name", ["context and label", "label, residual resampling"])
@torch.no_grad()
def test_compiles_without_graph_breaks(name: str) -> None:
    torch.compiler.reset()
    unet = made(**VARIANTS[name])
    x, cond = state(unet), told(unet, masked=True)
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    assert relative_error(predict(compiled, x, 500.0, cond), predict(unet, x, 500.0, cond)) < 1e-6


@torch.no_grad()
def test_a_binding_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    unet = made(context_dim=24, num_classes=10)
    x, bound = state(unet), unet.bind(told(unet), TIMES)
    compiled = torch.compile(bound, backend="eager", fullgraph=True)
    assert relative_error(compiled(x, 500.0), bound(x, 500.0)) < 1e-6


@torch.no_grad()
def test_one_compiled_graph_serves_every_time_and_every_binding() -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        del inputs
        graphs.append(graph)
        return graph.forward

    unet = made(context_dim=24)
    x, conds = state(unet), [told(unet), told(unet)]
    expected = [unet.bind(cond, range(12))(x, 11.0) for cond in conds]
    unet.compile(backend=count, fullgraph=True)
    for cond, out in zip(conds, expected, strict=True):
        bound = unet.bind(cond, range(12))
        for t in range(12):
            compiled = bound(x, t)
        assert relative_error(compiled, out) < 1e-6
        bound(x, 0.5)
    assert len(graphs) == 1


# Refusals

T = torch.tensor([3, 4])
X = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"x": X[0]}, r"shape \(3, 8, 8\) and expects \(B, 3, H, W\)"),
        ({"concat_channels": 4}, {"x": X}, r"expects \(B, 7, H, W\), 3 channels of the state and 4 of concat: append"),
        ({}, {"x": X[:, :, :7]}, "7 x 8 states and halves them 1 times: make height and width multiples of 2"),
        ({}, {"t": torch.tensor(3)}, r"2 states and t of shape \(\)"),
        ({}, {"t": torch.tensor([3])}, r"2 states and t of shape \(1,\)"),
        ({"context_dim": 24}, {}, r"reads context \(context_dim=24\) and was given none"),
        ({"num_classes": 10}, {}, r"reads label \(num_classes=10\) and was given none"),
        ({"vector_dim": 5}, {}, r"reads vector \(vector_dim=5\) and was given none"),
        ({}, {"context": torch.zeros(2, 5, 24)}, "given context .* does not read it: build the unet with context_dim"),
        ({}, {"vector": torch.zeros(2, 5)}, "given vector .* does not read it"),
        ({}, {"label": T}, "given label .* does not read it"),
        ({"context_dim": 24}, {"context": torch.zeros(2, 5, 16)}, r"\(B, L, 24\), got \(2, 5, 16\): build .*=16"),
        ({"vector_dim": 5}, {"vector": torch.zeros(2, 6)}, r"\(B, 5\), got \(2, 6\)"),
        ({"num_classes": 10}, {"label": torch.zeros(2)}, "integer classes"),
        ({"context_dim": 24}, {"context": torch.zeros(1, 5, 24)}, r"2 states and context of shape \(1, 5, 24\)"),
        (
            {"context_dim": 24},
            {"context": torch.zeros(2, 5, 24), "context_mask": torch.ones(2, 4, dtype=torch.bool)},
            r"context_mask as bool \(B, L\)",
        ),
        (
            {"context_dim": 24},
            {"context": torch.zeros(2, 5, 24), "context_mask": torch.ones(2, 5)},
            "context_mask as bool",
        ),
        ({}, {"context_mask": torch.ones(2, 5, dtype=torch.bool)}, "a context of shape None"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    options: dict[str, Any], arguments: dict[str, Tensor], message: str
) -> None:
    unet = UNet(**TINY | options)
    with pytest.raises(ValueError, match=f"backbone 'unet'.*{message}"):
        unet(**{"x": X, "t": T} | arguments)


def test_binding_refuses_slots_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="was given none"):
        UNet(**TINY, context_dim=24).bind(Conditioning(), TIMES)
    with pytest.raises(ValueError, match="does not read it"):
        UNet(**TINY).bind(Conditioning(label=T), TIMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": None}, "exactly one of num_heads and head_channels"),
        ({"head_channels": 16}, "exactly one of num_heads and head_channels"),
        ({"num_heads": 3}, "num_heads=3, head_channels=None does not divide a level of 64 channels"),
        ({"num_heads": None, "head_channels": 48}, "head_channels=48 does not divide"),
        ({"num_classes": 10, "vector_dim": 5}, "at most one of num_classes and vector_dim"),
        ({"model_channels": 40}, r"widths \[40, 40, 80\] must be multiples of 32"),
        ({"channel_mult": ()}, "at least one"),
        ({"context_dim": 24, "transformer_depth": (1, 2, 3)}, "one entry for each of the 2 levels"),
        ({"context_dim": 24, "disable_self_attention": (True,)}, "one entry for each of the 2 levels"),
        ({"linear_projections": True}, "need a context_dim"),
        ({"transformer_depth": 2}, "need a context_dim"),
        ({"disable_self_attention": (True, False)}, "need a context_dim"),
        ({"context_dim": 24, "qkv_first": True}, "does nothing with a context_dim"),
        ({"resblock_updown": True, "conv_resample": False}, "does nothing with resblock_updown"),
        ({"num_res_blocks": 0}, "must be at least 1"),
        ({"context_dim": 24, "transformer_depth": 0}, "must be at least 1"),
        ({"concat_channels": -1}, "at least 0"),
        ({"num_classes": 0}, "at least 1 where given"),
    ],
)
def test_options_that_contradict_or_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"backbone 'unet': .*{message}"):
        UNet(**TINY | options)
