"""The composed model: what is refused when composed, what sampling depends on, and what training computes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import ldmkit
from ldmkit.conditioning import Conditioning, Joint
from ldmkit.denoiser import DenoisingLoss
from ldmkit.errors import BatchError, CompositionError
from ldmkit.guidance import CFG, clip, keep_known, quantize
from ldmkit.model import LatentDiffusion, compose
from ldmkit.noise import Noise
from ldmkit.parts import Part, Recipe, Source
from ldmkit.process import VP, RectifiedFlow, trailing
from ldmkit.samplers import blend
from ldmkit.samplers.ddim import DDIM
from ldmkit.samplers.ddpm import DDPM
from ldmkit.samplers.plms import PLMS

UNET = {
    "channels": 1,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "num_heads": 2,
}
PIXEL = Part("pixel", {"channels": 1})
PROCESS = Part("vp", {})


def unet(**options):
    return ldmkit.build("backbone", "unet", **{**UNET, **options})


def awake(model):
    """A fresh network ends in zeros; give every part something to say."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def class_model(**rules):
    recipe = Recipe(
        first_stage=PIXEL,
        backbone=Part("unet", {**UNET, "context_dim": 16}),
        process=PROCESS,
        prediction="v",
        sources={"class": Source(Part("class-label", {"classes": 5, "width": 16}), **rules)},
    )
    return awake(compose(recipe))


def plain_model():
    return awake(compose(Recipe(first_stage=PIXEL, backbone=Part("unet", UNET), process=PROCESS, prediction="v")))


class Vector(nn.Module):
    reads = ("style",)

    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.provides = {"vector": width}

    def forward(self, batch):
        return Conditioning(vector=batch["style"])

    def null(self, batch):
        return Conditioning(vector=torch.zeros_like(batch["style"]))


LABEL = {"classes": 5, "width": 16}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"backbone": unet(channels=4)},
            r"first stage 'pixel' gives latents of 1 channels; backbone 'unet' expects 4: build the backbone with "
            "channels=1",
        ),
        (
            {"backbone": unet(context_dim=24), "conditioner": ldmkit.build("conditioner", "class-label", **LABEL)},
            r"'label' \('class-label'\) gives context of width 16; backbone 'unet' expects 24.*context_dim=16",
        ),
        (
            {"backbone": unet(), "conditioner": ldmkit.build("conditioner", "class-label", **LABEL)},
            r"gives context of width 16; backbone 'unet' reads no context",
        ),
        ({"backbone": unet(context_dim=24)}, "reads context of width 24, which no conditioner provides"),
        ({"backbone": unet(concat_channels=3)}, "reads concat of channels 3, which no conditioner provides"),
        ({"backbone": unet(num_classes=3)}, "reads label of classes 3, which no conditioner provides"),
        (
            {"backbone": unet(vector_dim=4), "conditioner": Vector(8)},
            r"\(Vector\) gives vector of width 8; backbone 'unet' expects 4",
        ),
        (
            {
                "backbone": unet(concat_channels=2),
                "conditioner": ldmkit.build("conditioner", "low-res", channels=1),
            },
            "gives concat of channels 1; backbone 'unet' expects 2.*concat_channels=1",
        ),
        (
            {
                "backbone": unet(concat_channels=2),
                "conditioner": ldmkit.build("conditioner", "semantic-map", classes=3, channels=2, stages=2),
            },
            "'semantic-map'.* shrinks the image by 4; first stage 'pixel' by 1",
        ),
        ({"backbone": unet(), "process": RectifiedFlow(), "prediction": "eps"}, "'eps' is undefined at alpha = 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_both_names_and_the_fix(parts, message):
    fitting = {"first_stage": ldmkit.build("first-stage", "pixel", channels=1), "process": VP()}
    with pytest.raises(CompositionError, match=message):
        LatentDiffusion(**{**fitting, **parts})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"first_stage": nn.Identity()}, "Identity is not a first stage"),
        ({"backbone": nn.Identity()}, "Identity is not a backbone"),
        ({"conditioner": nn.Identity()}, "Identity is not a conditioner"),
    ],
)
def test_what_is_no_component_is_refused(parts, message):
    fitting = {"first_stage": ldmkit.build("first-stage", "pixel", channels=1), "process": VP(), "backbone": unet()}
    with pytest.raises(TypeError, match=message):
        LatentDiffusion(**{**fitting, **parts})


def test_printing_a_model_shows_slots_shapes_parameters_and_owners():
    text = str(class_model(drop=0.1))
    for expected in ("first stage", "unet", "source class", "label -> context 16", "dropped 10%", "ldmkit 0.1.0"):
        assert expected in text
    assert f"{sum(p.numel() for p in class_model().parameters()):,} parameters" in text


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(eta=1.0), DDPM(), PLMS()], ids=str)
def test_an_image_is_the_same_alone_and_at_any_place_in_any_batch(sampler):
    """To 1e-4 of the largest value: float32 sums differ with the batch size, and ten steps amplify that."""
    model = class_model()
    labels = torch.tensor([3, 0, 4, 1])

    def run(rows):
        batch = {"label": labels[rows]}
        return model.sample(
            batch, size=(8, 12), seed=[7 + r for r in rows], levels=10, sampler=sampler, guidance=CFG(2.0)
        )

    together = run([0, 1, 2, 3])
    for rows in ([2], [3, 2], [2, 0, 1]):
        alone = run(rows)
        error = (alone[rows.index(2)] - together[2]).abs().max() / together.abs().max()
        assert float(error) < 1e-4


def test_sampling_reads_and_changes_no_global_randomness():
    model = plain_model()
    before = torch.get_rng_state()
    a = model.sample(size=(8, 8), seed=3, levels=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(model.sample(size=(8, 8), seed=3, levels=4), a)


def test_two_threads_on_one_model_give_what_one_thread_gives():
    model = class_model()

    def run(seed):
        batch = {"label": torch.tensor([seed % 5])}
        return model.sample(batch, size=(8, 8), seed=[seed], levels=6, sampler=DDIM(eta=1.0), guidance=CFG(3.0))

    serial = [run(seed) for seed in range(6)]
    with ThreadPoolExecutor(2) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(run, range(6)), serial, strict=True))


def test_guidance_scale_one_is_no_guidance_and_scales_are_per_image():
    model = class_model()
    batch = {"label": torch.tensor([1, 2])}

    def run(guidance):
        return model.sample(batch, size=(8, 8), seed=0, levels=4, guidance=guidance)

    torch.testing.assert_close(run(CFG(1.0)), run(None))
    mixed = run(CFG((1.0, 4.0)))
    torch.testing.assert_close(mixed[0], run(CFG(1.0))[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], run(CFG(4.0))[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[1], run(CFG(1.0))[1], atol=1e-3)


def two_source_model(guided):
    words = Part("precomputed", {"key": "words", "slot": "context", "size": 16})
    style = Part("precomputed", {"key": "style", "slot": "vector", "size": 8})
    parts = {"words": words, "style": style}
    recipe = Recipe(
        first_stage=PIXEL,
        backbone=Part("unet", {**UNET, "context_dim": 16, "vector_dim": 8}),
        process=PROCESS,
        prediction="v",
        sources={name: Source(part, guided=name in guided) for name, part in parts.items()},
    )
    return awake(compose(recipe))


@pytest.mark.parametrize("guided", [("words",), ("style",), ("words", "style")])
def test_guidance_drops_only_the_guided_sources(guided):
    """One step against the formula by hand, in two calls of the network."""
    model, levels = two_source_model(guided), trailing(VP(), 1)
    batch = {"words": torch.randn(1, 3, 16), "style": torch.randn(1, 8)}
    kept = {key: torch.zeros_like(value) if key in guided else value for key, value in batch.items()}
    start = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        cond, uncond = (model.denoiser.bind(model.conditioner(b), levels)(start, levels.start) for b in (batch, kept))
    z = model.sample(batch, size=(8, 8), levels=levels, guidance=CFG(3.0), start=start)
    torch.testing.assert_close(z, uncond + 3 * (cond - uncond), rtol=1e-4, atol=1e-5)


def test_guidance_that_would_do_nothing_is_refused():
    with pytest.raises(ValueError, match="no source of this model is guided"):
        class_model(guided=False).sample({"label": torch.tensor([1])}, size=(8, 8), guidance=CFG(2.0))


def test_sampling_in_training_mode_is_refused_where_dropout_would_draw():
    recipe = Recipe(first_stage=PIXEL, backbone=Part("unet", {**UNET, "dropout": 0.1}), process=PROCESS)
    model = compose(recipe)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        model.sample(size=(8, 8), levels=1)
    assert model.eval().sample(size=(8, 8), levels=1).shape == (1, 1, 8, 8)


def test_one_seed_starts_from_one_noise_whatever_the_number_of_steps():
    model, starts = plain_model(), []

    def remember(x, now):
        starts.append((x.clone(), now))
        return x

    for steps in (3, 50):
        model.sample(size=(8, 8), seed=4, levels=trailing(model.process, steps)[:1], at_stop=remember)
        model.sample(size=(8, 8), seed=4, levels=steps, at_stop=remember)
    first = [x / (now.alpha**2 + now.sigma**2) ** 0.5 for x, now in starts if now in (starts[0][1], starts[1][1])]
    assert all(torch.allclose(x, first[0]) for x in first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_state_is_float32_or_finer_whatever_it_starts_from(dtype):
    start = torch.randn(2, 1, 8, 8).to(dtype)
    batch = {"label": torch.tensor([1, 2])}
    z = class_model().sample(batch, size=(8, 8), levels=2, start=start, guidance=CFG((2.0, 3.0)))
    assert z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("mask", [torch.ones(1, 1, 8, 8, dtype=torch.bool), torch.ones(1, 1, 8, 8)])
def test_masks_may_be_boolean_and_states_double(mask):
    model, known = plain_model(), torch.zeros(1, 1, 8, 8)
    call = {"size": (8, 8), "levels": 2, "start": torch.randn(1, 1, 8, 8, dtype=torch.float64)}
    plain = model.sample(**call)
    torch.testing.assert_close(model.sample(**call, wrap=lambda d: keep_known(d, known, mask)), plain)
    torch.testing.assert_close(model.sample(**call, at_stop=blend(known, mask, Noise((1,), "known"))), plain)


def test_a_sample_can_be_continued_from_a_slice_of_its_levels():
    model = plain_model()
    levels = trailing(model.process, 8)
    whole = model.sample(size=(8, 8), seed=5, levels=levels, sampler=DDIM(eta=0.7))
    half = model.sample(size=(8, 8), seed=5, levels=levels[:3], sampler=DDIM(eta=0.7))
    rest = model.sample(size=(8, 8), seed=5, levels=levels[3:], sampler=DDIM(eta=0.7), start=half)
    torch.testing.assert_close(rest, whole)


def test_a_wrapped_denoiser_reaches_the_sampler():
    model = plain_model()
    z = model.sample(size=(8, 8), seed=0, levels=trailing(model.process, 5), wrap=lambda d: clip(d, -0.1, 0.1))
    assert float(z.abs().max()) <= 0.1 + 1e-6


def test_temperature_zero_makes_a_stochastic_sampler_deterministic():
    model = plain_model()
    start = torch.randn(1, 1, 8, 8)
    runs = [
        model.sample(size=(8, 8), seed=seed, levels=5, sampler=DDPM(), temperature=0.0, start=start) for seed in (1, 2)
    ]
    assert torch.equal(*runs)


def test_quantised_sampling_lands_on_codes():
    parts = {"channels": 3, "codebook_size": 16, "base_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1}
    recipe = Recipe(
        first_stage=Part("vq", {**parts, "scale": 2.0}),
        backbone=Part("unet", {**UNET, "channels": 3}),
        process=PROCESS,
        prediction="v",
    )
    model = awake(compose(recipe))
    z = model.sample(
        size=(16, 16), levels=trailing(model.process, 3), wrap=lambda d: quantize(d, model.first_stage.nearest_code)
    )
    torch.testing.assert_close(model.first_stage.nearest_code(z), z)


def test_a_result_can_be_used_with_gradients():
    z = plain_model().sample(size=(8, 8), levels=2)
    (z * torch.ones(1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": (9, 8)}, ValueError, "multiples of 2 px .* use 8 or 10 for 9"),
        ({"size": (0, 8)}, ValueError, "multiples of 2 px"),
        ({"batch": {}}, BatchError, r"source 'class' .* reads \['label'\], .*it has \[\]"),
        (
            {"batch": {"label": torch.tensor([0, 1]), "lable": 1}},
            BatchError,
            "would ignore 'lable'.*did you mean 'label'",
        ),
        ({"seed": [1, 2, 3]}, ValueError, "the number of images is said twice: .*'the seeds': 3"),
        ({"start": torch.zeros(2, 1, 4, 4)}, ValueError, r"start has shape \(2, 1, 4, 4\)"),
        ({"levels": 0}, ValueError, "at least 1 step"),
        ({"guidance": CFG((1.0, 2.0, 3.0))}, ValueError, "3 scales for 2 images"),
        ({"temperature": -1.0}, ValueError, "at least 0"),
        ({"temperature": 0.5}, ValueError, "draws no noise"),
        ({"sampler": "ddim"}, TypeError, r"ldmkit\.build\('sampler'"),
        ({"guidance": 2.0}, TypeError, r"ldmkit\.build\('guidance'"),
        ({"levels": 2.5}, TypeError, "a number of steps or Levels"),
        ({"start": torch.zeros(2, 1, 8, 8, dtype=torch.int64)}, TypeError, "floating point"),
    ],
)
def test_a_wrong_call_is_refused_before_the_network_runs(arguments, error, message, monkeypatch):
    model = class_model()
    monkeypatch.setattr(type(model.backbone), "forward", None)
    call = {"batch": {"label": torch.tensor([0, 1])}, "size": (8, 8), **arguments}
    with pytest.raises(error, match=message):
        model.sample(call.pop("batch"), **call)


class Pull:
    """Guidance by a gradient: pulls the estimate of x0 toward a target, through the network."""

    needs_uncond, needs_grad = False, True

    def __call__(self, bind, cond, uncond, levels):
        denoise = bind(cond)

        def guided(x, level):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                x0 = denoise(x, level)
                (gradient,) = torch.autograd.grad((x0 - 1).square().sum(), x)
            return x0.detach() - 0.1 * gradient

        return guided


def test_a_guidance_that_needs_gradients_gets_them():
    """Inference tensors, the caches of a binding included, could not take part in a gradient."""
    model = class_model()
    call = {"batch": {"label": torch.tensor([1])}, "size": (8, 8), "levels": 3}
    pulled, free = (model.sample(**call, guidance=guidance) for guidance in (Pull(), None))
    assert bool(pulled.isfinite().all())
    assert not torch.allclose(pulled, free, atol=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_cfg_on_a_model_without_conditioner_is_refused():
    with pytest.raises(ValueError, match="has no conditioner: use scale 1"):
        plain_model().sample(size=(8, 8), guidance=CFG(2.0), levels=2)


def test_the_loss_of_a_sample_depends_on_its_seed_and_not_on_the_batch():
    model = class_model(drop=0.3)
    batch = {"image": torch.rand(4, 1, 8, 8) * 2 - 1, "label": torch.tensor([0, 1, 2, 3])}
    whole = model(batch, seeds=[10, 11, 12, 13])
    part = model({key: value[2:] for key, value in batch.items()}, seeds=[12, 13])
    torch.testing.assert_close(part, whole[2:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.loss(batch, [10, 11, 12, 13]), whole.mean())


def test_a_model_that_predicts_its_target_has_no_loss():
    class Knows(nn.Module):
        channels, multiple = 1, 1

        def __init__(self):
            super().__init__()
            self.accepts = {"concat": 1}
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x, t, context=None, context_mask=None, vector=None, label=None):
            level = VP().level(t)
            state, clean = x[:, :1], x[:, 1:]
            return level.alpha * (state - level.alpha * clean) / level.sigma - level.sigma * clean

    model = LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=1),
        backbone=Knows(),
        process=VP(),
        prediction="v",
        conditioner=ldmkit.build("conditioner", "low-res", channels=1),
    )
    image = torch.rand(6, 1, 4, 4)
    loss = model({"image": image, "low_res": image}, seeds=range(6))
    assert float(loss.detach().max()) < 1e-8


def test_dropout_replaces_the_share_it_says():
    model = class_model(drop=0.25)
    kept = []
    whole = model.conditioner.dropped
    model.conditioner.dropped = lambda batch, keep: kept.append(keep["class"]) or whole(batch, keep)
    latent = torch.zeros(2000, 1, 2, 2)
    model({"latent": latent, "label": torch.zeros(2000, dtype=torch.int64)}, range(2000))
    assert abs(float(kept[0].float().mean()) - 0.75) < 0.03


def test_the_first_stage_is_frozen_in_training():
    parts = {"channels": 3, "base_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "dropout": 0.5}
    recipe = Recipe(first_stage=Part("kl", parts), backbone=Part("unet", {**UNET, "channels": 3}), process=PROCESS)
    model = compose(recipe).train()
    assert not model.first_stage.training
    assert model.denoiser.training
    model.loss({"image": torch.rand(2, 3, 8, 8)}, [0, 1]).backward()
    assert all(p.grad is None for p in model.first_stage.parameters())


def test_kl_training_latents_are_posterior_draws_by_seed():
    parts = {"channels": 3, "base_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1}
    recipe = Recipe(first_stage=Part("kl", parts), backbone=Part("unet", {**UNET, "channels": 3}), process=PROCESS)
    model = compose(recipe).eval()
    image = torch.rand(1, 3, 8, 8)
    a, b, c = (float(model({"image": image}, [seed]).detach()) for seed in (1, 1, 2))
    assert a == b != c


def test_latents_given_are_not_encoded_again():
    model = plain_model()
    image = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model({"image": image}, [1, 2]), model({"latent": image}, [1, 2]))


def test_the_variational_weight_needs_betas():
    model = LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=1),
        backbone=unet(),
        process=VP(),
        objective=DenoisingLoss(elbo_weight=0.1),
    )
    plain = LatentDiffusion(first_stage=model.first_stage, backbone=model.backbone, process=VP())
    batch = {"image": torch.rand(2, 1, 8, 8)}
    assert (model(batch, [1, 2]) > plain(batch, [1, 2])).all()


def test_a_model_without_conditioner_refuses_a_condition():
    with pytest.raises(BatchError, match=r"would ignore 'prompt'.*it has no conditioner"):
        plain_model().sample({"prompt": ["a cat"]}, size=(8, 8))


def test_a_batch_without_image_or_latent_is_refused():
    with pytest.raises(BatchError, match="training needs either 'image' or 'latent'"):
        plain_model()({}, [0])


def test_training_refuses_what_it_would_ignore():
    image = torch.rand(1, 1, 8, 8)
    with pytest.raises(BatchError, match="would ignore 'label'"):
        plain_model()({"image": image, "label": torch.tensor([0])}, [0])
    with pytest.raises(BatchError, match="either 'image' or 'latent'"):
        plain_model()({"image": image, "latent": image}, [0])


def test_an_objective_for_another_table_is_refused():
    parts = {"first_stage": ldmkit.build("first-stage", "pixel", channels=1), "backbone": unet()}
    with pytest.raises(CompositionError, match=r"log-variance for 10 times; process .* has 1000"):
        LatentDiffusion(**parts, process=VP(), objective=DenoisingLoss(times=10))


def test_dropping_a_source_without_null_is_refused():
    with pytest.raises(CompositionError, match="without a null"):
        Joint({"c": ldmkit.build("conditioner", "class-label", **LABEL, null_class=False)}, drop={"c": 0.1})


@pytest.mark.parametrize("name", ["type", "keys", "a.b", "", "two words"])
def test_a_source_has_a_name_that_tensors_can_carry(name):
    with pytest.raises(ValueError, match="cannot be named"):
        Joint({name: ldmkit.build("conditioner", "class-label", **LABEL)})


def test_latent_keys_are_filled_by_the_models_own_first_stage():
    conditioner = ldmkit.build("conditioner", "masked-image", channels=1)
    model = LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=1, scale=0.5),
        backbone=unet(concat_channels=2),
        process=VP(),
        conditioner=Joint({"hole": conditioner}),
    )
    image, mask = torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    filled = model.filled({"masked_image": image, "mask": mask})
    torch.testing.assert_close(filled["masked_image_latent"], 0.5 * image)
    assert model.sample({"masked_image": image, "mask": mask}, size=(8, 8), levels=2).shape == (1, 1, 8, 8)


def test_a_cast_model_keeps_the_scale_of_its_first_stage_and_float32_at_its_borders():
    parts = {"channels": 3, "base_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "scale": 0.18215}
    recipe = Recipe(first_stage=Part("kl", parts), backbone=Part("unet", {**UNET, "channels": 3}), process=PROCESS)
    model = compose(recipe).eval().cast(torch.bfloat16)
    assert float(model.first_stage.scale) == pytest.approx(0.18215, rel=1e-6)
    z = model.sample(size=(16, 16), levels=2)
    assert z.dtype == model.decode(z).dtype == model.encode(torch.zeros(1, 3, 8, 8)).dtype == torch.float32
