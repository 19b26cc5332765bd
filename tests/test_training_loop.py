"""The loop: a run is a function of its seed, goes on after anything that ends it, and says what is wrong."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.small import WIDTH, Both, Small, Vectors, run, trained
from PIL import Image

from ldmkit.errors import CheckpointError, NonFiniteError
from ldmkit.training import EMA
from ldmkit.training.data import Feed
from ldmkit.training.interruption import Stopped
from ldmkit.training.log import TensorBoard, read_log, write_sheet
from ldmkit.training.loop import train
from ldmkit.training.optim import AdamW, constant, cosine
from ldmkit.training.order import indices, sample_seeds

TESTS = Path(__file__).parent


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-6)


def numbers(out):
    """The log without the clock."""
    lines = read_log(out / "log.jsonl")
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own():
    first, second = indices(5, 0, 7, 7), indices(5, 7, 7, 7)
    assert sorted(first) == sorted(second) == list(range(7))
    assert list(first) != list(second)
    assert list(indices(5, 3, 9, 7)) == [*first[3:], *second[:5]]
    assert list(indices(6, 0, 7, 7)) != list(first)


def test_samples_have_seeds_of_their_own():
    assert sample_seeds(5, 2, 3) == sample_seeds(5, 0, 5)[2:]
    assert len({*sample_seeds(5, 0, 100), *sample_seeds(6, 0, 100)}) == 200


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_processes_share_each_step_of_one(world, parts):
    def places(world, parts):
        feeds = [Feed(Vectors(), None, 5, 12, rank, world, parts) for rank in range(world)]
        steps = [list(feed.steps(3, 5)) for feed in feeds]
        return [[(p.places, p.seeds) for feed in steps for p in feed[at]] for at in range(2)]

    def flat(step):
        return [pair for places, seeds in step for pair in zip(places, seeds, strict=True)]

    assert [flat(step) for step in places(world, parts)] == [flat(step) for step in places(1, 1)]
    assert all(len(step) == world * parts for step in places(world, parts))


def test_workers_load_what_one_process_would():
    class Drawn(Vectors):
        def __getitem__(self, place):
            return {"x": torch.rand(WIDTH)}

    def augment(record, seed):
        return {"x": record["x"] + seed % 7}

    def loaded(workers):
        return [
            torch.stack([record["x"] for record in portion.records])
            for step in Feed(Drawn(), augment, 5, 4, parts=2, workers=workers).steps(1, 4)
            for portion in step
        ]

    assert torch.equal(torch.cat(loaded(0)), torch.cat(loaded(2)))


def test_a_rate_warms_up_and_falls():
    assert [constant(2.0, 4)(step) for step in (0, 3, 50)] == [0.5, 2.0, 2.0]
    falling = cosine(2.0, 104, warm_up=4)
    assert [falling(step) for step in (1, 3, 4)] == [1.0, 2.0, 2.0]
    assert falling(54) == pytest.approx(1.0)
    assert falling(104) == falling(200) == pytest.approx(0.0)


def test_a_signal_saves_and_the_same_call_goes_on_to_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole", dropout=0.3)
    before = torch.get_rng_state()

    def stop(line, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="after step 3 of 6"):
        trained(tmp_path / "cut", dropout=0.3, save_every=100, watch=[stop])
    assert_equal(trained(tmp_path / "cut", dropout=0.3), whole)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    assert torch.equal(torch.get_rng_state(), before), "training drew from the caller's generator"


def test_dropout_inside_the_network_belongs_to_the_run(tmp_path):
    whole = trained(tmp_path / "whole", dropout=0.3, workers=1)
    trained(tmp_path / "cut", steps=2, dropout=0.3, workers=1)
    small = Small(dropout=0.3)
    torch.manual_seed(9)
    train(small, Vectors(), run(tmp_path / "cut", workers=1))
    assert torch.equal(small.net.layers[0].bias, whole["layers.0.bias"])
    assert not torch.equal(small.net.layers[0].bias, trained(tmp_path / "dry")["layers.0.bias"])


def test_a_run_killed_anywhere_while_saving_goes_on_to_the_same_bits(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "distributed" / "killed.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20


def test_a_log_has_no_lines_of_steps_that_were_lost(tmp_path):
    trained(tmp_path, steps=2)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "net/loss": 0}\n{"step": 6, "net')
    trained(tmp_path, steps=4)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [2, 4]


def test_parts_of_a_batch_sum_to_its_gradient(tmp_path):
    assert_close(trained(tmp_path / "parts", accumulate=4), trained(tmp_path / "whole"))


def test_a_gradient_is_clipped_to_its_largest_norm(tmp_path):
    def step(weights):
        return torch.optim.SGD(weights)

    start = Small().net.state_dict()
    after = trained(tmp_path, steps=1, optimizer=step, rate=constant(1.0), clip=1e-2, ema=None)
    moved = math.hypot(*(float((value - start[name]).norm()) for name, value in after.items()))
    assert moved == pytest.approx(1e-2, rel=1e-3)


def test_averages_are_exported_and_weights_go_on_without_them(tmp_path):
    small = Small()

    class Watching(AdamW):
        def __call__(self, weights):
            optimizer = super().__call__(weights)
            optimizer.register_step_post_hook(lambda *_: ema.update(small.net))
            return optimizer

    ema = EMA(small.net, 0.7)
    train(small, Vectors(), run(tmp_path / "a", ema=0.7, optimizer=Watching(), show_every=1))
    assert_equal({name: small.net.get_parameter(name).data for name in ema.average}, ema.average)
    assert_equal(trained(tmp_path / "b", ema=0.0), trained(tmp_path / "c", ema=None))


def test_what_is_frozen_stays(tmp_path):
    after = trained(tmp_path)
    assert torch.equal(after["fixed.weight"], Small().net.fixed.weight)
    assert not torch.equal(after["layers.0.weight"], Small().net.layers[0].weight)


def test_bfloat16_leaves_weights_in_float32(tmp_path):
    half, whole = trained(tmp_path / "half", precision=torch.bfloat16), trained(tmp_path / "whole")
    assert half["layers.0.weight"].dtype == torch.float32
    assert not torch.equal(half["layers.0.weight"], whole["layers.0.weight"])
    torch.testing.assert_close(half["layers.0.weight"], whole["layers.0.weight"], rtol=0, atol=0.05)


def test_a_step_that_is_not_finite_is_skipped_and_named(tmp_path):
    seen = []

    def optimizer(weights):
        made = torch.optim.SGD(weights)
        made.register_step_post_hook(lambda *_: seen.append(None))
        return made

    after = trained(tmp_path, data=Vectors(bad=[7]), optimizer=optimizer)
    assert all(value.isfinite().all() for value in after.values())
    events = [line["event"] for line in read_log(tmp_path / "log.jsonl") if "event" in line]
    assert len(events) + len(seen) == 6
    assert events
    assert all("samples [7] of the data" in event for event in events)
    assert read_log(tmp_path / "log.jsonl")[-1]["skipped"] == len(events)


def test_too_many_in_a_row_end_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match=r"3 steps in a row .* up to step 3: .*samples \[\d.* of the data"):
        trained(tmp_path, data=Vectors(bad=range(10)), max_skipped=2)


def test_a_gradient_alone_that_is_not_finite_names_the_batch(tmp_path):
    small = Small()
    small.net.layers[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="losses are finite and the gradient is not; the batch is the samples"):
        train(small, Vectors(), run(tmp_path, max_skipped=0))


def test_what_is_measured_once_is_not_measured_again(tmp_path):
    first, again = Small(), Small()
    train(first, Vectors(), run(tmp_path, steps=2))
    train(again, Vectors(), run(tmp_path, steps=4))
    assert (first.begun, again.begun) == (1, 0)
    assert [record["place"] for record in first.first] == list(indices(0, 0, 3, 10))


def test_pictures_come_at_their_interval_in_evaluation_mode(tmp_path):
    small = Small()
    train(small, Vectors(), run(tmp_path, steps=6, show_every=4))
    assert small.shown == [(4, False), (6, False)]
    assert sorted(path.name for path in (tmp_path / "shown").iterdir()) == ["loss-00000004.png", "loss-00000006.png"]


def test_a_sheet_holds_images_row_by_row(tmp_path):
    images = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 2, 4)
    write_sheet(images, tmp_path / "new" / "sheet.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert sheet.shape == (6, 8, 3)
    assert [sheet[row, column, 0] for row in (0, 2, 4) for column in (0, 4)] == [0, 64, 128, 191, 255, 255]


def test_phases_take_turns_and_one_without_a_gradient_sits_out(tmp_path):
    both = Both()
    train(both, Vectors(), run(tmp_path / "both", steps=4, ema=None))
    assert both.late.weight.item() == 0
    both = Both()
    train(both, Vectors(), run(tmp_path / "both", steps=6, ema=None))
    assert both.late.weight.item() == pytest.approx(0.04, rel=0.01)
    alone = trained(tmp_path / "alone", ema=None)
    assert torch.equal(both.net.layers[0].weight, alone["layers.0.weight"])
    assert {"net/loss", "late/loss"} <= read_log(tmp_path / "both" / "log.jsonl")[-1].keys()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": 1}, "seed=0, and this one has seed=1"),
        ({"batch": 2}, "batch=4, and this one has batch=2"),
        ({"data": Vectors(11)}, "samples=10, and this one has samples=11"),
        ({"ema": None}, "another choice of what is trained"),
        ({"steps": 1}, "has gone further"),
    ],
)
def test_another_run_does_not_go_on_in_the_same_folder(tmp_path, options, says):
    trained(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match=says):
        trained(tmp_path, **{"steps": 4, **options})


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda out: run(out, steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda out: run(out, precision=torch.float16), ValueError, "float16 would need its loss scaled"),
        (lambda out: run(out, clip=0.0), ValueError, "clip"),
        (lambda out: run(out, seed=-1), ValueError, "seed"),
        (lambda out: trained(out, accumulate=3), ValueError, "batch of 4 cannot be shared equally by 1 processes in 3"),
        (lambda out: train(Small(), [], run(out)), ValueError, "list is empty"),
        (lambda out: cosine(1.0, 5, warm_up=5), ValueError, "leaves none"),
        (lambda out: constant(0.0), ValueError, "positive"),
    ],
)
def test_nonsense_is_refused_before_anything_is_computed(tmp_path, call, error, says):
    with pytest.raises(error, match=says):
        call(tmp_path)


def test_a_trainee_without_anything_to_train_is_refused(tmp_path):
    small = Small()
    small.net.requires_grad_(False)
    with pytest.raises(ValueError, match="phase 'net' has nothing to train"):
        train(small, Vectors(), run(tmp_path))


def test_a_loss_that_is_not_per_sample_is_refused(tmp_path):
    small = Small()
    small.net.register_forward_hook(lambda module, inputs, loss: loss.mean())
    with pytest.raises(ValueError, match=r"phase 'net' gives a loss of shape \(\) for 4 samples"):
        train(small, Vectors(), run(tmp_path))


def test_a_sample_that_cannot_be_read_is_named(tmp_path):
    class Broken(Vectors):
        def __getitem__(self, place):
            if place == 7:
                raise OSError("no such file: cat.png")
            return super().__getitem__(place)

    with pytest.raises(RuntimeError, match=r"sample 7 of Broken cannot be read: OSError: no such file: cat\.png"):
        trained(tmp_path, data=Broken())


def test_a_damaged_state_is_refused(tmp_path):
    trained(tmp_path, steps=2)
    (tmp_path / "step-00000002" / ".metadata").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="step-00000002 cannot be read"):
        trained(tmp_path)


def test_the_result_says_how_it_came_to_be(tmp_path):
    from safetensors import safe_open

    with safe_open(train(Small(), Vectors(), run(tmp_path, steps=2, ema=0.5)), "pt") as file:
        notes = json.loads(file.metadata()["notes"])
    assert notes == {"seed": 0, "batch": 4, "samples": 10, "steps": 2, "ema": 0.5}


def test_tensorboard_is_told_every_line(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(tmp_path / "run", watch=[TensorBoard(tmp_path / "board")])
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    lines = read_log(tmp_path / "run" / "log.jsonl")
    told = [(event.step, pytest.approx(event.value)) for event in events.Scalars("net/loss")]
    assert told == [(line["step"], line["net/loss"]) for line in lines]
