"""Guidances are plain classifier-free guidance at their neutral settings, what they say elsewhere, and compose."""

import math
from dataclasses import dataclass

import pytest
import torch
from naming import named

from ldmkit.conditioning import Conditioning
from ldmkit.denoiser import PREDICTIONS, Denoiser
from ldmkit.guidance import (
    CFG,
    Autoguidance,
    ClassifierGuidance,
    Downsampled,
    DynamicThreshold,
    Guidance,
    ImageGuidance,
    Interval,
    NoGuidance,
    Perceptual,
    PerImage,
    PiecewiseCFG,
    Rescale,
    taken,
)
from ldmkit.process import EDM, VP, RectifiedFlow, at, log_snr, trailing
from ldmkit.testing import GaussianBackbone

LEVELS = trailing(VP(), 6)
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
COND = Conditioning(vector=torch.randn(3, 2, generator=torch.Generator().manual_seed(2)))
UNCOND = Conditioning(vector=torch.zeros(3, 2))


@dataclass
class Network:
    """Binds an estimate that moves with state, level and condition, and counts the rows it is asked about."""

    factor: float = 1.0

    def __post_init__(self):
        self.bound, self.rows = [], []

    def bind(self, cond, levels=LEVELS):
        self.bound.append(cond.batch_size)

        def denoise(x, level):
            assert len(x) == cond.batch_size
            self.rows.append(len(x))
            return self.factor * (0.4 * level.alpha * x.tanh() + cond.vector[:, :, None, None].to(x) + level.sigma)

        return denoise


WEAK = Network(factor=0.7)


def guided(guidance, x=X, level=LEVELS.stops[2], cond=COND, uncond=UNCOND, levels=LEVELS):
    with torch.no_grad():
        return guidance(Network().bind, cond, uncond, levels)(x, level)


def classify(x, t):
    mean = x.flatten(1).mean(1)
    return torch.stack([mean, -mean], 1)


def bright(image, level):
    return image.flatten(1).mean(1)


def given(level=LEVELS.stops[2]):
    return guided(NoGuidance(), level=level)


NEUTRAL = [
    CFG((3.0, 3.0, 3.0)),
    CFG(lambda level: 3.0),
    PiecewiseCFG((-3.0, 3.0), (3.0, 3.0)),
    Rescale(CFG(3.0), phi=0.0),
    Interval(CFG(3.0)),
    DynamicThreshold(CFG(3.0), limit=math.inf),
    Autoguidance(WEAK, 1.0, of=CFG(3.0)),
    Autoguidance(WEAK, (1.0, 1.0, 1.0), of=CFG(3.0)),
    ClassifierGuidance(classify, 1, scale=0.0, of=CFG(3.0)),
    ImageGuidance(bright, scale=0.0, of=CFG(3.0)),
    ImageGuidance(bright, scale=0.0, of=Rescale(Interval(Autoguidance(WEAK, of=CFG(3.0))), phi=0.0)),
]


@pytest.mark.parametrize("guidance", NEUTRAL, ids=named)
def test_at_its_neutral_setting_each_guidance_is_plain_cfg(guidance):
    assert isinstance(guidance, Guidance)
    assert guidance.needs_uncond
    assert not guidance.needs_grad
    for level in LEVELS.stops:
        assert torch.equal(guided(guidance, level=level), guided(CFG(3.0), level=level))


OFF = [
    CFG(),
    CFG((1.0, 1.0, 1.0)),
    PiecewiseCFG((-3.0, 3.0), (1.0, 1.0)),
    Rescale(CFG(), prediction="v"),
    Interval(NoGuidance(), low=0.5),
    DynamicThreshold(NoGuidance(), limit=1e4),
    Autoguidance(WEAK),
    ClassifierGuidance(classify, (0, 1, 1), scale=0.0),
    ImageGuidance(bright, scale=(0.0, 0.0, 0.0)),
]


@pytest.mark.parametrize("guidance", OFF, ids=named)
def test_off_is_the_conditional_model_and_needs_no_uncond(guidance):
    assert not guidance.needs_uncond
    for level in LEVELS.stops:
        assert torch.equal(guided(guidance, level=level, uncond=None), given(level))


def test_cfg_is_its_definition_per_image():
    without = guided(NoGuidance(), cond=UNCOND)
    expected = [w + s * (g - w) for w, g, s in zip(without, given(), (0.0, 2.5, -1.0), strict=True)]
    torch.testing.assert_close(guided(CFG((0.0, 2.5, -1.0))), torch.stack(expected))


def test_a_scale_that_depends_on_the_level_is_that_scale_at_each_level():
    curve = PiecewiseCFG((-4.0, 4.0), (1.0, 5.0))
    for level in (*LEVELS.stops, VP().level(430.5)):
        scale = 1 + 4 * min(max((log_snr(level) + 4) / 8, 0), 1)
        assert curve.scale_at(level) == pytest.approx(scale)
        torch.testing.assert_close(guided(curve, level=level), guided(CFG(scale), level=level))
        torch.testing.assert_close(guided(CFG(curve.scale_at), level=level), guided(CFG(scale), level=level))


MIDDLE = LEVELS.stops[2:4]


def is_middle(level):
    ratios = [one.sigma / one.alpha for one in MIDDLE]
    return min(ratios) <= level.sigma / level.alpha <= max(ratios)


LIMITED = {
    "interval": Interval(CFG(3.0), low=MIDDLE[1].sigma / MIDDLE[1].alpha, high=MIDDLE[0].sigma / MIDDLE[0].alpha),
    "cfg": CFG(lambda level: 3.0 if is_middle(level) else 1.0),
}


@pytest.mark.parametrize("guidance", LIMITED.values(), ids=LIMITED)
def test_where_guidance_is_off_the_unconditional_half_is_not_computed(guidance):
    network = Network()
    denoise = guidance(network.bind, COND, UNCOND, LEVELS)
    assert sorted(network.bound) == [3, 6]
    for level in LEVELS.stops[:-1]:
        expected = CFG(3.0) if level in MIDDLE else NoGuidance()
        torch.testing.assert_close(denoise(X, level), guided(expected, level=level))
    assert network.rows == [6 if level in MIDDLE else 3 for level in LEVELS.stops[:-1]]
    assert sorted(network.bound) == [3, 6]


@pytest.mark.parametrize("guidance", LIMITED.values(), ids=LIMITED)
def test_what_no_stop_asks_for_is_bound_when_a_level_between_does(guidance):
    network = Network()
    outside = at(VP(), [999.0, 990.0], VP().level(980.0))
    denoise = guidance(network.bind, COND, UNCOND, outside)
    assert network.bound == [3]
    torch.testing.assert_close(denoise(X, MIDDLE[0]), guided(CFG(3.0), level=MIDDLE[0]))
    assert network.bound == [3, 6]


@pytest.mark.parametrize("process", [EDM(), RectifiedFlow()], ids=str)
def test_an_interval_is_the_same_noise_on_every_process(process):
    interval = Interval(CFG(2.0), low=0.4, high=2.5)
    for ratio in (0.1, 0.39, 0.41, 1.0, 2.4, 2.6, 30.0):
        levels = [p.level(p.time(-2 * math.log(ratio))) for p in (process, VP())]
        assert [interval.contains(level) for level in levels] == [0.4 <= ratio <= 2.5] * 2
    assert Interval(CFG(2.0)).contains(RectifiedFlow().level(1000.0))
    assert not interval.contains(RectifiedFlow().level(1000.0))


@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow()], ids=str)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_rescaling_gives_the_prediction_the_deviation_of_the_conditional_one(name, process):
    level = process.level(process.time(-0.8))

    def prediction(x0):
        a, b = PREDICTIONS[name].x0(level)
        return (x0 - a * X) / b

    plain, wanted = prediction(guided(CFG(5.0), level=level)), prediction(given(level)).std((1, 2, 3), keepdim=True)
    for phi in (0.3, 1.0):
        got = prediction(guided(Rescale(CFG(5.0), phi, prediction=name), level=level))
        expected = phi * plain * wanted / plain.std((1, 2, 3), keepdim=True) + (1 - phi) * plain
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_rescaling_acts_in_the_prediction_that_the_model_makes(name):
    process = EDM()
    denoiser = Denoiser(GaussianBackbone(process, name), process, name)
    levels = process.levels(4)

    def rescaled(guidance):
        def bind(cond):
            return denoiser.bind(Conditioning(), levels)

        with torch.no_grad():
            return guidance(bind, COND, UNCOND, levels)(X[:, :1], levels.start)

    weak = Network()
    strong = Autoguidance(weak, 3.0)
    assert torch.equal(rescaled(Rescale(strong)), rescaled(Rescale(strong, prediction=name)))


def test_a_denoiser_that_does_not_tell_its_prediction_is_asked_for_it():
    with pytest.raises(ValueError, match="say it with prediction="):
        guided(Rescale(CFG(3.0)))


def test_dynamic_thresholding_brings_estimates_into_their_range_and_leaves_the_rest_alone():
    size = guided(CFG(9.0)).abs().flatten(1)
    limit = float(size.max(dim=1).values.sort().values[0]) + 1e-3  # the smallest image is inside
    got = guided(DynamicThreshold(CFG(9.0), quantile=0.9, limit=limit))
    assert got.abs().max() <= limit * (1 + 1e-6)
    inside = int(size.max(dim=1).values.argmin())
    torch.testing.assert_close(got[inside], guided(CFG(9.0))[inside])
    other = (inside + 1) % 3
    bound = size[other].sort().values[math.ceil(0.9 * 32) - 1]
    torch.testing.assert_close(got[other], guided(CFG(9.0))[other].clamp(-bound, bound) * limit / bound)


def test_autoguidance_moves_away_from_the_weaker_model_with_its_own_condition():
    level, own = LEVELS.stops[2], Conditioning(vector=torch.ones(3, 2))
    for cond, told in ((None, COND), (own, own)):
        weak = WEAK.bind(told)(X, level)
        expected = weak + 2.5 * (guided(CFG(3.0)) - weak)
        torch.testing.assert_close(guided(Autoguidance(WEAK, 2.5, of=CFG(3.0), cond=cond)), expected)


def test_the_outer_guidance_acts_on_what_the_inner_one_gives():
    inside, outside = DynamicThreshold(Autoguidance(WEAK, 4.0), limit=0.5), Autoguidance(WEAK, 4.0)
    assert guided(inside).abs().max() <= 0.5 + 1e-6
    clamped = guided(DynamicThreshold(NoGuidance(), limit=0.5))
    torch.testing.assert_close(
        guided(Autoguidance(WEAK, 4.0, of=DynamicThreshold(NoGuidance(), limit=0.5))),
        WEAK.bind(COND)(X, LEVELS.stops[2]).lerp(clamped, 4.0),
    )
    assert guided(outside).abs().max() > 0.5


TARGET = torch.linspace(-1, 1, 3 * 2 * 2 * 2).view(3, 2, 2, 2)
HOLDING = [
    CFG((1.0, 2.0, 4.0)),
    Rescale(CFG((1.0, 2.0, 4.0)), prediction="eps"),
    Interval(CFG((0.5, 2.0, 4.0))),
    DynamicThreshold(CFG((5.0, 7.0, 9.0))),
    Autoguidance(WEAK, (0.5, 1.0, 2.0), of=CFG((1.0, 2.0, 4.0)), cond=Conditioning(vector=torch.rand(3, 2))),
    ClassifierGuidance(classify, (0, 1, 0), scale=(0.0, 1.0, 2.0), of=CFG((1.0, 2.0, 4.0))),
    ImageGuidance(Downsampled(TARGET), scale=(0.5, 1.0, 2.0), of=CFG((1.0, 2.0, 4.0))),
    ImageGuidance(Perceptual(lambda a, b: (a - b).abs().flatten(1).mean(1), X), of=CFG((1.0, 2.0, 4.0))),
]


@pytest.mark.parametrize("guidance", HOLDING, ids=lambda guidance: type(guidance).__name__)
def test_a_part_of_the_batch_is_guided_as_in_the_whole(guidance):
    assert isinstance(guidance, PerImage)
    images = [2, 0]
    cond, uncond = (one.map(lambda value: value[images]) for one in (COND, UNCOND))
    part = guided(taken(guidance, images), X[images], cond=cond, uncond=uncond)
    torch.testing.assert_close(part, guided(guidance)[images])


@pytest.mark.parametrize(
    "guidance", [NoGuidance(), CFG(3.0), Autoguidance(WEAK, 2.0), ImageGuidance(bright)], ids=named
)
def test_what_holds_one_value_for_all_is_itself_for_a_part(guidance):
    images = [1]
    cond, uncond = (one.map(lambda value: value[images]) for one in (COND, UNCOND))
    part = guided(taken(guidance, images), X[images], cond=cond, uncond=uncond)
    torch.testing.assert_close(part, guided(guidance)[images])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CFG((1.0, math.nan)), ValueError, "'cfg' needs a finite scale"),
        (lambda: guided(CFG(lambda level: math.inf)), ValueError, "'cfg' needs a finite scale"),
        (lambda: guided(CFG((1.0, 2.0))), ValueError, "2 scales for 3 images"),
        (lambda: taken(CFG((1.0, 2.0)), [0, 2]), ValueError, "values of 2 images, and is asked for image 2"),
        (lambda: taken(Downsampled(TARGET), [3]), ValueError, "values of 3 images, and is asked for image 3"),
        (lambda: guided(CFG(2.0), uncond=None), ValueError, "use scale 1 or guidance 'none'"),
        (lambda: guided(Interval(CFG(2.0), low=1e6), uncond=None), ValueError, "use scale 1 or guidance 'none'"),
        (lambda: PiecewiseCFG((0.0,), (1.0,)), ValueError, "two points at least"),
        (lambda: PiecewiseCFG((0.0, 1.0), (1.0,)), ValueError, "2 of log_snr and 1 of scale"),
        (lambda: PiecewiseCFG((1.0, 0.0), (1.0, 2.0)), ValueError, "finite points that rise"),
        (lambda: Rescale(CFG(2.0), phi=1.5), ValueError, r"phi in \[0, 1\], got 1.5"),
        (lambda: Rescale(CFG(2.0), prediction="epsilon"), ValueError, "knows the predictions eps, v, x0, flow"),
        (lambda: Interval(CFG(2.0), low=2.0, high=1.0), ValueError, "0 <= low <= high, got low=2.0, high=1.0"),
        (lambda: DynamicThreshold(CFG(2.0), quantile=0.0), ValueError, r"quantile in \(0, 1\]"),
        (lambda: DynamicThreshold(CFG(2.0), limit=0.0), ValueError, "limit > 0"),
        (lambda: Autoguidance(NoGuidance(), 2.0), TypeError, r"of a LatentDiffusion it is model\.denoiser"),
        (lambda: guided(Autoguidance(WEAK, (1.0, 2.0))), ValueError, "2 scales for 3 images"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_weaker_model_with_active_dropout_is_refused():
    backbone = GaussianBackbone(VP(), "v")
    backbone.add_module("dropout", torch.nn.Dropout(0.1))
    weak = Denoiser(backbone, VP(), "v")
    with pytest.raises(ValueError, match=r"call its eval\(\) first"):
        Autoguidance(weak, 2.0)
    assert not Autoguidance(weak.eval(), 2.0).needs_uncond
