"""Predictions are inverse to each other, and a bound denoiser equals the definition."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import ldmkit
from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import PREDICTIONS, Denoiser, DenoisingLoss, elbo_weights, min_snr_weights
from ldmkit.errors import CompositionError
from ldmkit.model import compose
from ldmkit.process import EDM, VP, RectifiedFlow, at, trailing, uniform
from ldmkit.registry import build
from ldmkit.testing import GaussianBackbone


class Mixing(nn.Module):
    """A small network that reads every slot, so that a lost one shows."""

    channels = 2
    multiple = 1

    def __init__(self, concat=1):
        super().__init__()
        self.accepts = {"concat": concat, "vector": 2, "label": 5, "context": 2}
        self.mix = nn.Conv2d(2 + concat, 2, 1)
        self.table = nn.Embedding(5, 2)

    def forward(self, x, t, context=None, context_mask=None, vector=None, label=None):
        extra = vector + self.table(label) + context.mean(1)
        return self.mix(x) + extra[:, :, None, None] + torch.cos(t)[:, None, None, None]


def small_unet():
    options = {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": []}
    return build("backbone", "unet", channels=1, num_heads=1, **options)


def conditioning(batch=2):
    return Conditioning(
        context=torch.randn(batch, 3, 2),
        vector=torch.randn(batch, 2),
        label=torch.arange(batch),
        concat=torch.randn(batch, 1, 4, 4),
    )


LEVELS = [VP().level(t) for t in (1.0, 500.0, 999.0)] + [EDM().level(0.3), RectifiedFlow().level(400.0)]


@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_target_and_x0_are_inverse(name, level):
    x0, eps = torch.randn(2, 2, 3, 3, 3, dtype=torch.float64)
    c, d = PREDICTIONS[name].target(level)
    a, b = PREDICTIONS[name].x0(level)
    x = level.alpha * x0 + level.sigma * eps
    torch.testing.assert_close(a * x + b * (c * x0 + d * eps), x0)


@pytest.mark.parametrize("name", ["v", "x0", "flow"])
def test_every_prediction_but_eps_is_finite_at_pure_noise(name):
    level = RectifiedFlow().level(1000.0)
    assert all(abs(value) < 10 for value in PREDICTIONS[name].x0(level))


@pytest.mark.parametrize("process", [RectifiedFlow(), VP(zero_terminal_snr=True)], ids=str)
def test_eps_is_refused_by_name_on_a_process_that_reaches_pure_noise(process):
    with pytest.raises(CompositionError, match="'eps' is undefined at alpha = 0"):
        Denoiser(GaussianBackbone(process, "eps"), process, "eps")


@pytest.mark.parametrize("levels", [uniform(VP(), 5), trailing(VP(), 5)], ids=["uniform", "trailing"])
def test_a_bound_denoiser_equals_one_level_per_sample(levels):
    denoiser, cond, x = Denoiser(Mixing(), VP(), "v"), conditioning(), torch.randn(2, 2, 4, 4)
    for keep_grad in (True, False):
        with torch.set_grad_enabled(keep_grad):
            bound = denoiser.bind(cond, levels)
            for level in levels.stops[:-1]:
                t = torch.full((2,), int(level.t))
                expected = denoiser(x, VP().level(t), cond)
                torch.testing.assert_close(bound(x, level), expected, rtol=1e-4, atol=1e-5)


def test_a_level_between_stops_needs_no_new_binding():
    levels = uniform(VP(), 5)
    denoiser, cond, x = Denoiser(Mixing(), VP(), "v"), conditioning(), torch.randn(2, 2, 4, 4)
    level = levels.between(levels.stops[1], levels.stops[2], 0.4)
    expected = denoiser(x, VP().level(torch.full((2,), level.t)), cond)
    torch.testing.assert_close(denoiser.bind(cond, levels)(x, level), expected, rtol=1e-4, atol=1e-4)


def test_concat_is_never_rescaled_with_the_state():
    seen = []

    class Spy(Mixing):
        def forward(self, x, t, context=None, context_mask=None, vector=None, label=None):
            seen.append(x.clone())
            return x[:, :2]

    cond, x = conditioning(), torch.randn(2, 2, 4, 4)
    levels = EDM().levels(3)
    with torch.no_grad():
        Denoiser(Spy(), EDM(), "v").bind(cond, levels)(x, levels.start)
    assert torch.equal(seen[0][:, 2:], cond.concat)
    torch.testing.assert_close(seen[0][:, :2], x / (1 + 80.0**2) ** 0.5)


@pytest.mark.parametrize(("trained", "prediction"), [(VP(), "eps"), (EDM(), "v"), (RectifiedFlow(), "flow")], ids=str)
def test_a_model_gives_the_same_x0_on_the_levels_of_another_process(trained, prediction):
    denoiser = Denoiser(GaussianBackbone(trained, prediction), trained, prediction)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    for process in (VP(), EDM(), RectifiedFlow()):
        levels = at(process, [process.time(snr) for snr in (-5.0, -2.0, 0.0, 2.5, 5.0)], process.clean)
        bound = denoiser.bind(Conditioning(), levels)
        for level in levels.stops[:-1]:
            expected = denoiser.backbone.data.denoise(x, level)
            torch.testing.assert_close(bound(x, level), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_network_runs_in_its_own_precision_and_the_state_stays(dtype):
    levels = uniform(VP(), 3)
    bound = Denoiser(Mixing().to(dtype), VP(), "v").bind(conditioning(), levels)
    with torch.no_grad():
        assert bound(torch.randn(2, 2, 4, 4), levels.start).dtype == torch.float32


def test_a_bound_call_keeps_nothing_on_the_module():
    denoiser = Denoiser(Mixing(), VP(), "v")
    before = {name: set(vars(module)) for name, module in denoiser.named_modules()}
    bound = denoiser.bind(conditioning(), uniform(VP(), 3))
    bound(torch.randn(2, 2, 4, 4), uniform(VP(), 3).start)
    assert {name: set(vars(module)) for name, module in denoiser.named_modules()} == before


def test_a_bound_denoiser_passes_gradients_to_the_state():
    levels = uniform(VP(), 3)
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    bound = Denoiser(Mixing(), VP(), "v").bind(conditioning(), levels)
    bound(x, levels.start).square().sum().backward()
    assert x.grad.abs().max() > 0


def test_the_loss_is_the_mean_distance_per_sample():
    out, target = torch.randn(2, 3, 2, 4, 4)
    t = torch.tensor([1, 2, 3])
    torch.testing.assert_close(DenoisingLoss("l2")(out, target, t), (out - target).square().mean((1, 2, 3)))
    torch.testing.assert_close(DenoisingLoss("l1")(out, target, t), (out - target).abs().mean((1, 2, 3)))


def test_a_learned_log_variance_is_a_parameter_and_has_its_optimum_at_the_loss():
    objective = DenoisingLoss(learn_log_variance=True, times=4)
    distance = 0.25
    out, target, t = torch.full((1, 1, 2, 2), distance**0.5), torch.zeros(1, 1, 2, 2), torch.tensor([2])
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        objective(out, target, t).sum().backward()
        optimizer.step()
    assert float(objective.log_variance.detach()[2].exp()) == pytest.approx(distance, rel=1e-3)


def test_elbo_weights_are_positive_and_start_with_their_second_entry():
    for prediction in ("eps", "x0", "v"):
        weights = elbo_weights(VP(), prediction)
        assert weights.shape == (1000,)
        assert weights[0] == weights[1] > 0


def test_the_variational_weights_of_x0_keep_the_originals_slip_of_precedence():
    alpha_bar = VP().alpha_bar
    weights = elbo_weights(VP(), "x0")
    torch.testing.assert_close(weights[1:], (0.5 * alpha_bar.sqrt() / (2 - alpha_bar))[1:])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Denoiser(nn.Linear(2, 2), VP()), TypeError, "is not a backbone"),
        (lambda: Denoiser(Mixing(), VP(), "noise"), ValueError, "'eps', 'v', 'x0', 'flow'"),
        (lambda: Denoiser(Mixing(), "vp"), TypeError, r"ldmkit\.build\('process', 'vp'\)"),
        (
            lambda: Denoiser(torch.compile(small_unet(), backend="eager"), VP()),
            TypeError,
            "compile a backbone in place",
        ),
        (lambda: DenoisingLoss("huber"), ValueError, "'l1' and 'l2'"),
        (lambda: DenoisingLoss(learn_log_variance=True), ValueError, "times"),
        (lambda: elbo_weights(EDM(), "v"), CompositionError, "elbo_weight=0"),
        (
            lambda: DenoisingLoss(elbo_weight=1.0)(*torch.zeros(2, 1, 1, 1, 1), torch.zeros(1)),
            ValueError,
            "elbo_weights",
        ),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_min_snr_is_the_clamped_weight_on_the_loss_in_x0(prediction):
    """||x0 - x0'||^2 = c ||out - target||^2 with c the square of x0's coefficient on the output; Min-SNR weighs it."""
    level = VP().level(torch.tensor([3, 200, 700, 990]))
    snr = ((level.alpha / level.sigma) ** 2).flatten()
    _, b = PREDICTIONS[prediction].x0(level)
    coefficient = torch.as_tensor(b, dtype=snr.dtype).expand(4, 1, 1, 1).flatten() ** 2
    expected = snr.clamp(max=5.0) * coefficient
    torch.testing.assert_close(min_snr_weights(level, prediction, 5.0), expected, rtol=1e-5, atol=0)


def test_min_snr_multiplies_the_loss_and_stays_in_the_recipe():
    plain, weighted = (
        compose(replace(ldmkit.recipe("digits"), objective=objective)) for objective in ({}, {"min_snr": 5.0})
    )
    weighted.load_state_dict(plain.state_dict())
    z, eps, t = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([10, 400, 900])
    cond = plain.conditioner({"label": torch.tensor([1, 2, 3])})
    ratio = weighted.eval().denoising_loss(z, eps, t, cond) / plain.eval().denoising_loss(z, eps, t, cond)
    expected = min_snr_weights(plain.process.level(t), plain.denoiser.prediction, 5.0)
    torch.testing.assert_close(ratio, expected.float(), rtol=1e-4, atol=0)
    assert weighted.recipe().objective == {"min_snr": 5.0}


def test_min_snr_is_refused_where_it_is_not_defined():
    with pytest.raises(ValueError, match="positive, got 0"):
        DenoisingLoss(min_snr=0)
    with pytest.raises(CompositionError, match="not for 'flow'"):
        min_snr_weights(VP().level(torch.tensor([3])), "flow", 5.0)
