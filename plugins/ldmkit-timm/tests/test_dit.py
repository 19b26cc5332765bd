"""The diffusion transformer: the laws of a backbone, and the published names and conventions."""

import math

import pytest
import torch
from ldmkit.denoiser import Backbone

from ldmkit_timm.dit import DiT, frequencies, positions

SLOTS = {
    "context": torch.linspace(-1, 1, 2 * 5 * 12).view(2, 5, 12),
    "vector": torch.linspace(-1, 1, 2 * 6).view(2, 6),
    "label": torch.tensor([3, 0]),
}
T = torch.tensor([3.0, 250.5])


@pytest.fixture
def x():
    return torch.randn(2, 4, 6, 10)


def awake(**options):
    """A DiT whose zeros were trained away."""
    dit = DiT(4, width=32, depth=2, heads=4, **options)
    for parameter in dit.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return dit.eval()


@pytest.fixture
def full():
    return awake(context_dim=12, vector_dim=6, num_classes=4)


def test_it_is_a_backbone():
    dit = DiT(4, width=32, depth=1, heads=4, patch=4, concat_channels=3, context_dim=12, vector_dim=6, num_classes=4)
    assert isinstance(dit, Backbone)
    assert dit.accepts == {"context": 12, "vector": 6, "label": 4, "concat": 3}
    assert dit.multiple == 4


@pytest.mark.parametrize(("side", "patch"), [((6, 10), 2), ((4, 4), 4), ((3, 5), 1)])
@pytest.mark.parametrize("concat", [0, 3])
def test_the_prediction_has_the_shape_of_the_state(side, patch, concat):
    dit = awake(patch=patch, concat_channels=concat)
    assert dit(torch.randn(3, 4 + concat, *side), torch.arange(3)).shape == (3, 4, *side)


def test_a_fresh_network_predicts_zero(x):
    dit = DiT(4, width=32, depth=2, heads=4, num_classes=4)
    assert not dit(x, T, label=SLOTS["label"]).any()


def test_the_names_are_those_of_the_published_model():
    with torch.device("meta"):
        xl = DiT(4, width=1152, depth=28, heads=16, num_classes=1001)
    shapes = {name: tuple(value.shape) for name, value in xl.state_dict().items()}
    assert len(shapes) == 28 * 10 + 11
    assert shapes["x_embedder.proj.weight"] == (1152, 4, 2, 2)
    assert shapes["t_embedder.mlp.0.weight"] == (1152, 256)
    assert shapes["y_embedder.embedding_table.weight"] == (1001, 1152)
    assert shapes["blocks.27.attn.qkv.weight"] == (3456, 1152)
    assert shapes["blocks.27.mlp.fc1.weight"] == (4608, 1152)
    assert shapes["blocks.27.adaLN_modulation.1.weight"] == (6912, 1152)
    assert shapes["final_layer.adaLN_modulation.1.weight"] == (2304, 1152)
    assert shapes["final_layer.linear.weight"] == (16, 1152)


def test_positions_are_the_published_ones_column_first():
    want = torch.empty(3 * 5, 8, dtype=torch.float64)
    for row in range(3):
        for column in range(5):
            rates = [1.0, 10000**-0.5]
            waves = [wave(place * rate) for place in (column, row) for wave in (math.sin, math.cos) for rate in rates]
            want[row * 5 + column] = torch.tensor(waves, dtype=torch.float64)
    torch.testing.assert_close(positions(3, 5, 8, torch.device("cpu")), want.float())


def test_times_are_embedded_cosine_first_and_fractions_count():
    embedded = frequencies(torch.tensor([0.0, 2.5]))
    torch.testing.assert_close(embedded[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    assert embedded[1, 0] == pytest.approx(math.cos(2.5))
    assert embedded[1, 128 + 64] == pytest.approx(math.sin(2.5 * 0.01), rel=1e-4)


def test_a_patch_is_laid_out_row_by_row_with_its_channels_last(x):
    dit = DiT(4, width=32, depth=1, heads=4)
    with torch.no_grad():
        dit.final_layer.linear.bias.copy_(torch.arange(16.0))
    out = dit(x, T)
    for channel, row, column in [(0, 0, 0), (3, 0, 1), (1, 5, 2), (2, 3, 9)]:
        assert (out[:, channel, row, column] == ((row % 2) * 2 + column % 2) * 4 + channel).all()


def test_patches_speak_to_each_other_only_through_the_gates(x):
    dit = DiT(4, width=32, depth=2, heads=4)
    torch.nn.init.normal_(dit.final_layer.linear.weight)
    moved = x.clone()
    moved[:, :, 2:4, 6:8] += 1
    changed = (dit(moved, T) - dit(x, T)).abs().amax(dim=(0, 1)) > 1e-6
    assert changed[2:4, 6:8].all()
    assert changed.sum() == 4


@pytest.mark.parametrize("slot", SLOTS)
def test_every_slot_is_read(slot, full, x):
    other = {"context": SLOTS["context"].flip(2), "vector": SLOTS["vector"].flip(1), "label": torch.tensor([1, 2])}
    assert not torch.allclose(full(x, T, **{**SLOTS, slot: other[slot]}), full(x, T, **SLOTS), atol=1e-4)
    assert not torch.allclose(full(x, T + 100, **SLOTS), full(x, T, **SLOTS), atol=1e-4)


def test_masked_tokens_are_not_seen(full, x):
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    hidden = SLOTS["context"].clone()
    hidden[0, 3:] = 1e3
    seen = full(x, T, **SLOTS, context_mask=mask)
    torch.testing.assert_close(full(x, T, **{**SLOTS, "context": hidden}, context_mask=mask), seen)
    short = {slot: value[:1] for slot, value in SLOTS.items()}
    short["context"] = short["context"][:, :3]
    torch.testing.assert_close(full(x[:1], T[:1], **short), seen[:1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(full(x, T, **SLOTS)[1:], seen[1:])


def test_samples_do_not_depend_on_their_neighbours(full, x):
    whole = full(x, T, **SLOTS)
    for n in range(2):
        alone = full(x[n : n + 1], T[n : n + 1], **{slot: value[n : n + 1] for slot, value in SLOTS.items()})
        torch.testing.assert_close(whole[n : n + 1], alone, atol=1e-5, rtol=1e-4)


def test_every_parameter_is_trained(full, x):
    full(x, T, **SLOTS).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in full.parameters())


def test_it_runs_in_low_precision(full, x):
    full.bfloat16()
    low = full(x.bfloat16(), T, **SLOTS)
    assert low.dtype == torch.bfloat16
    assert low.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 6, 10)}, r"got a state of shape \(2, 3, 6, 10\) and expects \(B, 4, H, W\)"),
        ({"x": torch.zeros(2, 4, 5, 10)}, "multiples of 2"),
        ({"t": torch.zeros(3)}, r"expects t of shape \(2,\)"),
        ({"label": None}, r"needs label \(num_classes=4\)"),
        ({"label": torch.zeros(2)}, r"expects label of shape \(2,\), integers"),
        ({"vector": torch.zeros(2, 7)}, r"expects vector of shape \(2, 6\); got \(2, 7\)"),
        ({"context": torch.zeros(2, 5, 8)}, r"expects context of shape \(2, 5, 12\)"),
        ({"context": torch.zeros(5, 12)}, "expects context of shape"),
        ({"context_mask": torch.ones(2, 5)}, r"expects context_mask as \(B, L\) bool"),
        ({"context_mask": torch.ones(2, 4, dtype=torch.bool)}, r"got \(2, 4\) torch.bool"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, full, x):
    with pytest.raises(ValueError, match=message):
        full(**{"x": x, "t": T, **SLOTS, **change})


def test_a_slot_that_it_does_not_read_is_refused(x):
    with pytest.raises(ValueError, match=r"does not read vector \(vector_dim=None\)"):
        awake()(x, T, vector=SLOTS["vector"])


@pytest.mark.parametrize("options", [{"width": 30, "heads": 2}, {"width": 32, "heads": 5}, {"width": 32, "heads": 0}])
def test_sizes_that_do_not_divide_are_refused(options):
    with pytest.raises(ValueError, match="multiple of 4 and of heads"):
        DiT(4, depth=1, **options)
