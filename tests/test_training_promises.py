"""What docs/train/what-went-wrong.md promises of training and no other file tests."""

import random

import numpy as np
import pytest
import torch
from distributed.small import Small, Vectors, run
from first_stage_job import compression, images
from first_stage_job import run as first_stage_run
from safetensors import safe_open

import ldmkit
from ldmkit.data.augment import Chain, Flip, RandomSquare, ShuffleObjects, TellCrop
from ldmkit.data.degradations import BSR
from ldmkit.data.masks import Mixed
from ldmkit.denoiser import DenoisingLoss
from ldmkit.training import EMA
from ldmkit.training.data import Feed
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.loop import train
from ldmkit.training.optim import AdamW, cosine
from ldmkit.training.order import indices

SIZE = 8
UNET = {
    "channels": 3,
    "model_channels": 32,
    "channel_mult": [1],
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "num_heads": 1,
    "context_dim": 8,
}
LAYOUT = {"classes": 5, "width": 8, "depth": 1, "tokens": 400, "max_objects": 3, "heads": 1, "head_width": 8}


def model(objective=None):
    torch.manual_seed(2)
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "pixel", channels=3),
        backbone=ldmkit.build("backbone", "unet", **UNET),
        process=ldmkit.build("process", "vp"),
        conditioner={"layout": ldmkit.build("conditioner", "layout", **LAYOUT)},
        objective=objective,
    )


def records(count=6):
    """Pictures larger than the crops, with a box each on the left and on the right."""
    pictures = torch.rand(count, 3, 12, 18, generator=torch.Generator().manual_seed(4))
    boxes = [(1, 0.05, 0.1, 0.3, 0.6), (3, 0.6, 0.3, 0.95, 0.9)]
    return [{"target": picture, "boxes": boxes} for picture in pictures]


AUGMENT = Chain((TellCrop(), RandomSquare(SIZE), Flip(), ShuffleObjects()))


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (4, 4), (8, 2)])
def test_the_rate_that_is_asked_for_is_the_rate_of_the_optimizer(tmp_path, batch, accumulate):
    asked, used = cosine(0.3, 4, warm_up=2), []

    def optimizer(weights):
        made = AdamW()(weights)
        made.register_step_pre_hook(lambda *_: used.append(made.param_groups[0]["lr"]))
        return made

    train(Small(), Vectors(), run(tmp_path, 4, rate=asked, batch=batch, accumulate=accumulate, optimizer=optimizer))
    assert used == [asked(step) for step in range(4)]


def test_every_process_measures_the_scale_on_the_same_samples():
    feeds = [Feed(records(), AUGMENT, 5, 4, rank=rank, world=world) for rank, world in ((0, 1), (0, 2), (1, 2))]
    alone, first, second = ([record["target"] for record in feed.first(5)] for feed in feeds)
    for one, two, three in zip(alone, first, second, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_a_run_cut_inside_an_epoch_sees_every_sample_once(tmp_path):
    class Watched(Vectors):
        def __getitem__(self, place):
            seen.append(place)
            return super().__getitem__(place)

    for steps in (2, 5):
        seen: list[int] = []
        small = Small()
        small.begin = lambda read: None
        train(small, Watched(), run(tmp_path, steps))
        first = 0 if steps == 2 else 8
        assert seen == indices(0, first, 4 * steps - first, 10).tolist()
    assert sorted(indices(0, 0, 10, 10)) == list(range(10))


def test_a_conditioner_that_is_trained_is_averaged_as_the_network_is(tmp_path):
    phase = Diffusion(model(), "layout-to-image").phases["diffusion"]
    averaged = EMA(phase).average.keys()
    assert averaged == {name for name, p in phase.named_parameters() if p.requires_grad}
    assert any("transformer" in name for name in averaged)
    paths = {
        ema: train(
            Diffusion(model(), "layout-to-image"), records(), run(tmp_path / str(ema), 3, ema=ema), augment=AUGMENT
        )
        for ema in (None, 0.5)
    }
    last, average = (ldmkit.load(path).conditioner.state_dict() for path in paths.values())
    changed = [name for name in last if not torch.equal(last[name], average[name])]
    assert any(name.endswith("token_emb.weight") for name in changed)


def test_a_result_holds_one_set_of_weights_under_the_models_own_names(tmp_path):
    path = train(Diffusion(model(), "layout-to-image"), records(), run(tmp_path, 1), augment=AUGMENT)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(model().state_dict())


def test_a_learned_log_variance_is_trained_with_the_model(tmp_path):
    made = model(DenoisingLoss(learn_log_variance=True, times=1000))
    train(Diffusion(made, "layout-to-image"), records(), run(tmp_path, 3, ema=None), augment=AUGMENT)
    assert 0 < int((made.objective.log_variance != 0).sum()) <= 12


def test_a_vq_first_stage_learns_and_so_do_its_codes(tmp_path):
    trainee = compression("vq", start=1000)
    codes = trainee.stage.quantize.embedding.weight.detach().clone()
    before = trainee.measured(trainee.shown)[1]
    options = {"optimizer": AdamW((0.5, 0.9)), "rate": lambda step: 5e-3, "clip": None}
    train(trainee, images(), first_stage_run(tmp_path, steps=8, **options))
    assert trainee.measured(trainee.shown)[1]["psnr"] > before["psnr"] + 2
    assert not torch.equal(trainee.stage.quantize.embedding.weight, codes)


def test_global_randomness_changes_nothing_and_is_not_changed(tmp_path):
    degrade, masks = BSR(4), Mixed()

    def augment(record, seed):
        shown = AUGMENT(record, seed)
        mask = masks((SIZE, SIZE), seed)
        small = degrade(shown["target"], seed).mean()
        return {**shown, "target": shown["target"] * (1 - mask) + mask * small}

    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        made = model()
        torch.manual_seed(seed)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        train(Diffusion(made, "layout-to-image"), records(), run(tmp_path / str(seed), 2), augment=augment)
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
        results.append(made.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@pytest.mark.parametrize("seed", range(4))
def test_a_layout_and_its_crop_are_told_alike_in_training_and_sampling(seed):
    made = model()
    shown = AUGMENT(records()[0], seed)
    trained = Diffusion(made, "layout-to-image").prepare([shown], (0,))
    task = ldmkit.pipeline("layout-to-image", made.eval()).task
    asked = task.prepare({"boxes": shown["boxes"], "crop": shown["crop"]})
    assert (trained["boxes"], trained["crop"]) == (asked["boxes"], asked["crop"])
    tokenizer = made.conditioner.sources["layout"].tokenizer
    tokens = tokenizer.encode(asked["boxes"][0], asked["crop"][0])
    corners = shown["crop"][:2], shown["crop"][2:]
    assert tokens[-2:] == [tokenizer.vocabulary.place(corner) for corner in corners]
    assert shown["crop"] != (0.0, 0.0, 1.0, 1.0)
