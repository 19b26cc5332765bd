"""The paper's comparison of downsampling factors, in small: a first stage and a diffusion model for each of them.

    python -m ldmkit.demo.factors --out runs/factors

Single objects of shape scenes at 32 x 32 pixels, asked for by class; f = 1 is diffusion in pixels. The networks have
equal numbers of parameters and are trained for equal numbers of steps, as in the paper, where the samples of a step
grew with f from 7 to 112. Here they are chosen so that the arithmetic of a step is equal:

    samples of a step at factor f = round(FLOPs of a step / FLOPs of one sample at f)

Every run can be stopped at any time and goes on where it was; what was measured once is kept. Not counted, as in the
paper: the first stages' own training, which the record gives by itself.

Source: Rombach et al. 2022, section 4.1, figures 6 and 7, and table 13.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldmkit.composition import FirstStage
from ldmkit.data.scenes import CLASSES
from ldmkit.demo.factors_plot import plot, table
from ldmkit.demo.factors_scores import SHOWN, SIDE, Objects, exact, objects, scores
from ldmkit.first_stages.kl import KL
from ldmkit.latents import latent_statistics
from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Part, Recipe, Source
from ldmkit.process import trailing
from ldmkit.registry import build_part
from ldmkit.training.compression import Compression, load_first_stage
from ldmkit.training.contract import Record
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.first_stage import FirstStageLoss, KLWeight
from ldmkit.training.log import seconds, write_sheet
from ldmkit.training.loop import RESULT, train
from ldmkit.training.metrics import psnr
from ldmkit.training.optim import constant, cosine
from ldmkit.training.run import Run
from ldmkit.weights.atomic import write_atomically

RECORD = Path(__file__).with_name("factors.json")
EQUAL = 0.05
"""How far parameters and compute may lie apart, of the smallest."""
KL_WEIGHT = 1e-6
FIRST_STAGE_RATE = 1e-3
RATE = 1e-3
DECAY = 0.999
MOST = 84
ROW = 14
CHANNELS: Mapping[int, int] = {1: 3, 2: 2, 4: 3, 8: 8}
"""Channels of the latent: the paper's, and 8 at f = 8 as the paper has at 16, since 4 x 4 cells hold a whole image."""
WIDTHS = (1, 1, 2, 4)
"""Of the first stages' levels, in units of 32 channels; factor 2^n has the first n + 1 of them."""
NETWORKS: Mapping[int, Mapping[str, Any]] = {
    1: {"model_channels": 32, "channel_mult": [2, 2, 2], "num_res_blocks": 1, "attention_resolutions": [4]},
    2: {"model_channels": 32, "channel_mult": [2, 2, 2], "num_res_blocks": 1, "attention_resolutions": [2]},
    4: {"model_channels": 32, "channel_mult": [2, 2], "num_res_blocks": 2, "attention_resolutions": [1]},
    8: {"model_channels": 32, "channel_mult": [2, 2], "num_res_blocks": 2, "attention_resolutions": [1]},
}
"""1.4 million parameters each: attention at 8 x 8 cells (f = 8: 4 x 4) and in the middle; one head, as in the paper."""


@dataclass(frozen=True)
class Plan:
    """How much of everything; a folder belongs to one plan.

    Args:
        factors: out of 1, 2, 4, 8; the first one's compute is everyone's.
        scenes: to train on.
        first_stage_steps: of each first stage.
        first_stage_batch: samples of a step there.
        checkpoints: steps after which the diffusion models are measured; the last ends the training.
        batch: samples of a step at the first factor.
        samples: images of each measurement, the classes in turn.
        sampler_steps: of DDIM, measured after the last checkpoint.
        shown_steps: of DDIM at the checkpoints.
        reference: real images that samples are compared with.
        seed: of the scenes, the first weights and the training.
    """

    factors: tuple[int, ...] = (1, 2, 4, 8)
    scenes: int = 12_000
    first_stage_steps: int = 1000
    first_stage_batch: int = 16
    checkpoints: tuple[int, ...] = (75, 150, 300, 600, 1200)
    batch: int = 4
    samples: int = 168
    sampler_steps: tuple[int, ...] = (5, 10, 20)
    shown_steps: int = 10
    reference: int = 2048
    seed: int = 211210752


@dataclass(frozen=True)
class Held:
    """What all factors share: the training scenes, and those no model has seen.

    Args:
        train: of split ``train``.
        test: of split ``test``, the reference.
        val: of split ``val``, as many as a measurement has samples.
    """

    train: Objects
    test: Objects
    val: Objects


def main() -> None:
    """Train, sample and measure what is not yet measured; print the table, write the record and the plot."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit.demo.factors", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/factors"), help="folder of the runs")
    parser.add_argument("--record", type=Path, help="default: factors.json in the folder")
    parser.add_argument("--plot", type=Path, help="default: factors.png in the folder")
    options = parser.parse_args()
    record = compare(Plan(), options.out)
    write_json(options.record or options.out / "factors.json", record)
    rows = {one["factor"]: folder(options.out, one["factor"]) / "samples.png" for one in record["factors"]}
    plot(record, rows).save(options.plot or options.out / "factors.png", optimize=True)
    print(table(record))


def compare(plan: Plan, out: Path) -> dict[str, Any]:
    """The whole comparison, from wherever the folder says it is.

    Args:
        plan: how much of everything.
        out: the folder; made if it is not there.

    Returns:
        The record: what was compared by which rule, and what was measured, as plain data.

    Raises:
        ValueError: the folder belongs to another plan, or parameters or compute are not equal.
        Stopped: a signal ended a training; the same call goes on.
    """
    out.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    if kept(out / "plan.json", "plan", lambda: given) != given:
        raise ValueError(f"{out} belongs to a comparison with another plan, see plan.json there: take another folder")
    held = drawn(plan)
    done = [compared(factor, plan, held, out) for factor in plan.factors]
    check_equal("parameters", {one["factor"]: one["parameters"] for one in done})
    check_equal("FLOPs of a step", {one["factor"]: one["flops_per_sample"] * one["batch"] for one in done})
    return {
        "data": f"ShapeScenes of one object, {plan.scenes:,} of split 'train', {SIDE} x {SIDE}, by class",
        "command": "python -m ldmkit.demo.factors",
        "rule": "equal parameters, equal steps, samples of a step so that its FLOPs are equal",
        "weights": f"exponential moving average, decay {DECAY}; one learning rate, {RATE:g} after a warm-up",
        "plan": given,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "real": scores(held.val.image, held.val.label, held.test.image),
        "factors": done,
    }


def drawn(plan: Plan) -> Held:
    """The scenes of a plan."""
    return Held(
        objects(plan.scenes, "train", plan.seed),
        objects(plan.reference, "test", plan.seed),
        objects(plan.samples, "val", plan.seed),
    )


def compared(factor: int, plan: Plan, held: Held, out: Path) -> dict[str, Any]:
    """Everything about one factor: both stages trained, and measured."""
    place = folder(out, factor)
    place.mkdir(exist_ok=True)
    measured, last = place / "measured.json", plan.checkpoints[-1]
    stage = first_stage(factor, plan, held.train, place)
    model = composed(factor, stage, plan.seed)
    batch, cost = batch_of(factor, model, plan)
    records, reached = encoded(stage, held.train), 0

    def scored(steps: int, levels: int) -> dict[str, float]:
        def now() -> dict[str, float]:
            nonlocal reached
            if reached != steps:
                trained(model, records, plan, batch, steps, place / "diffusion")
                reached = steps
            return judged(model, plan, held, levels, place / "samples.png")

        found: dict[str, float] = kept(measured, f"{steps} steps, ddim {levels}", now)
        return found

    return {
        **described(factor, model),
        "flops_per_sample": cost,
        "batch": batch,
        "steps": last,
        "training_tflop": tera(cost * batch * last),
        "first_stage": kept(measured, "first stage", lambda: ceiling(factor, stage, plan, held)),
        "curve": [
            {"step": step, "tflop": tera(cost * batch * step), **counted(scored(step, plan.shown_steps))}
            for step in plan.checkpoints
        ],
        "sampling": [at_speed(model, plan, levels, scored(last, levels)) for levels in plan.sampler_steps],
        "training_seconds": seconds(place / "diffusion" / "log.jsonl", batch),
    }


def described(factor: int, model: LatentDiffusion) -> dict[str, Any]:
    """What a model is."""
    return {
        "factor": factor,
        "latent": list(model.latent_shape((SIDE, SIDE))),
        "parameters": sum(p.numel() for p in cast(nn.Module, model.denoiser).parameters()),
        "network": dict(NETWORKS[factor]),
    }


def folder(out: Path, factor: int) -> Path:
    """Where the runs of a factor are."""
    return out / f"f{factor}"


def recipe(factor: int) -> Recipe:
    """The composition at a factor; the first stage at f = 1 is the image itself."""
    options: dict[str, Any] = {"channels": CHANNELS[factor]}
    if factor > 1:
        widths = list(WIDTHS[: factor.bit_length()])
        options |= {"base_channels": 32, "channel_mult": widths, "num_res_blocks": 1, "resolution": SIDE}
    network = {"channels": CHANNELS[factor], "num_classes": len(CLASSES), "num_heads": 1, **NETWORKS[factor]}
    label = Part("class-index", {"classes": len(CLASSES), "null_class": False, "names": list(CLASSES)})
    return Recipe(
        first_stage=Part("pixel" if factor == 1 else "kl", options),
        backbone=Part("unet", network),
        process=Part("vp", {"betas": "cosine"}),
        prediction="v",
        sources={"label": Source(label, guided=False)},
    )


def first_stage(factor: int, plan: Plan, data: Objects, place: Path) -> FirstStage:
    """The first stage of a factor, trained or read, with its scale set to unit deviation of the latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        stage: FirstStage = build_part("first-stage", recipe(factor).first_stage)
    if isinstance(stage, KL):
        steps = plan.first_stage_steps
        run = Run(
            out=place / "first-stage",
            steps=steps,
            batch=plan.first_stage_batch,
            rate=cosine(FIRST_STAGE_RATE, steps, warm_up=steps // 10),
            ema=DECAY,
            seed=plan.seed,
            save_every=200,
        )
        train(compression(stage), [{"target": image} for image in data.image], run)
        stage = load_first_stage(place / "first-stage" / RESULT)
    measured = latent_statistics(stage, (part * 2 - 1 for part in torch.split(data.image[:2048], 128)))
    cast(KL, stage).scale.mul_(measured.rescaling)
    return stage


def error(image: Tensor, made: Tensor) -> Tensor:
    """|x - x_made| + (x - x_made)^2: the first alone is content for long with a background and no object on it."""
    return (image - made).abs() + (image - made).square()


def compression(stage: KL) -> Compression:
    """How a first stage is trained: the error of a pixel and a weakly weighted KL, without an adversary."""
    return Compression(stage, FirstStageLoss(None, KLWeight(KL_WEIGHT), error))


def composed(factor: int, stage: FirstStage, seed: int) -> LatentDiffusion:
    """The model of a factor on its trained first stage."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = compose(recipe(factor))
    model.first_stage.load_state_dict(cast(nn.Module, stage).state_dict())
    return model.eval()


@torch.no_grad()
def encoded(stage: FirstStage, data: Objects) -> list[Record]:
    """Latents with their posteriors' deviations, so that every step draws anew; pixels have none."""
    latents: list[Mapping[str, Tensor]] = []
    for part in torch.split(data.image, 256):
        if isinstance(stage, KL):
            posterior = stage.posterior(part * 2 - 1)
            rows = zip(posterior.mean * stage.scale, posterior.std * stage.scale, strict=True)
            latents += [{"latent": mean, "latent_std": std} for mean, std in rows]
        else:
            latents += [{"latent": z} for z in stage.encode(part * 2 - 1)]
    return [{**latent, "label": label} for latent, label in zip(latents, data.label, strict=True)]


def batch_of(factor: int, model: LatentDiffusion, plan: Plan) -> tuple[int, int]:
    """(samples of a step, training FLOPs of one of them) at a factor, by the rule."""
    first = plan.factors[0]
    cost = training_flops(model)
    if factor == first:
        return plan.batch, cost
    of_step = plan.batch * training_flops(compose(recipe(first)))
    return max(1, round(of_step / cost)), cost


def trained(model: LatentDiffusion, records: Sequence[Record], plan: Plan, batch: int, steps: int, place: Path) -> None:
    """Train up to a step, and leave the averaged weights in the model."""
    run = Run(
        out=place,
        steps=steps,
        batch=batch,
        rate=constant(RATE, warm_up=100),
        ema=DECAY,
        seed=plan.seed,
        save_every=200,
    )
    train(Diffusion(model, "class-conditional"), records, run)
    model.eval()


def labels(count: int) -> list[int]:
    """The classes asked for, each as often as the others."""
    return [SHOWN[i % len(SHOWN)] for i in range(count)]


def sampled(model: LatentDiffusion, plan: Plan, steps: int) -> tuple[Tensor, float]:
    """Images (samples, 3, 32, 32) in [0, 1] by DDIM, and the seconds of one core that they took, decoder included."""
    label, parts = torch.tensor(labels(plan.samples)), []
    begun = time.process_time()
    for first, asked in zip(range(0, plan.samples, MOST), torch.split(label, MOST), strict=True):
        levels = trailing(model.process, steps)
        parts.append(model.decode(model.sample({"label": asked}, size=(SIDE, SIDE), seed=first, levels=levels)))
    seconds = time.process_time() - begun
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1), seconds


def judged(model: LatentDiffusion, plan: Plan, held: Held, levels: int, sheet: Path) -> dict[str, float]:
    """What the samples of a model score, and the seconds they took; some of them are written as a picture."""
    images, seconds = sampled(model, plan, levels)
    if levels == plan.shown_steps:
        write_sheet(images[:ROW], sheet, ROW)
    return {**scores(images, labels(plan.samples), held.test.image), "core_seconds": round(seconds, 3)}


@torch.no_grad()
def ceiling(factor: int, stage: FirstStage, plan: Plan, held: Held) -> dict[str, Any]:
    """What a first stage cost, and what its reconstructions of unseen images score."""
    images = held.val.image
    again = torch.cat([stage.decode(stage.encode(part * 2 - 1)) for part in torch.split(images, MOST)])
    again = (again / 2 + 0.5).clamp(0, 1)
    found = {**scores(again, held.val.label, held.test.image), "exact": exact(again, held.val.scenes)}
    if not isinstance(stage, KL):
        return {"name": "pixel", "parameters": 0, "training_tflop": 0.0, "ceiling": found}
    found["psnr_db"] = round(float(psnr(again, images).mean()), 2)
    return {
        "name": "kl",
        "parameters": sum(p.numel() for p in stage.parameters()),
        "training_tflop": tera(first_stage_flops(factor) * plan.first_stage_batch * plan.first_stage_steps),
        "ceiling": found,
    }


def first_stage_flops(factor: int) -> int:
    """Floating-point operations of one image in the training of a first stage, forward and backward."""
    fresh: KL = build_part("first-stage", recipe(factor).first_stage)
    autoencoder, image = compression(fresh).phases["autoencoder"], torch.zeros(1, 3, SIDE, SIDE)
    with torch.enable_grad():
        return flops(lambda: torch.autograd.backward(autoencoder({"image": image}, [0], 0)))


def training_flops(model: LatentDiffusion) -> int:
    """Floating-point operations of one sample in training, forward and backward."""
    batch = {"latent": torch.zeros(1, *model.latent_shape((SIDE, SIDE))), "label": torch.tensor([0])}
    cost = flops(lambda: torch.autograd.backward(model.loss(batch, [0])))
    model.zero_grad(set_to_none=True)
    return cost


def at_speed(model: LatentDiffusion, plan: Plan, steps: int, found: Mapping[str, float]) -> dict[str, float]:
    """What was measured of samples after some steps of DDIM, with what one of them costs."""

    def one_image() -> None:
        levels = trailing(model.process, steps)
        model.decode(model.sample({"label": torch.tensor([0])}, size=(SIDE, SIDE), levels=levels))

    speed = {
        "gflop_per_image": round(flops(one_image) / 1e9, 4),
        "images_per_core_second": round(plan.samples / found["core_seconds"], 3),
    }
    return {"steps": steps, **speed, **counted(found)}


def flops(run: Callable[[], object]) -> int:
    """What ``torch.utils.flop_counter`` counts in a call: convolutions, products of matrices and attention.

    A multiplication with an addition counts 2.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    count: int = counter.get_total_flops()
    return count


def check_equal(name: str, values: Mapping[int, float]) -> None:
    """Refuse a comparison of unequals.

    Raises:
        ValueError: values further apart than ``EQUAL`` of the smallest.
    """
    if max(values.values()) > (1 + EQUAL) * min(values.values()):
        raise ValueError(
            f"{name} of the factors differ by more than {EQUAL:.0%}: {dict(values)}; see NETWORKS and batch"
        )


def kept(path: Path, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - plain data
    """What is written under a name in a file, or made now and written there."""
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if name not in known:
        known[name] = make()
        write_json(path, known)
    return known[name]


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data, all or nothing."""
    text = json.dumps(data, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


def counted(measured: Mapping[str, float]) -> dict[str, float]:
    """What was counted in the images, without the time it took."""
    return {name: value for name, value in measured.items() if name != "core_seconds"}


def tera(count: float) -> float:
    """In units of 10**12, to three digits after the point."""
    return round(count / 1e12, 3)


if __name__ == "__main__":
    main()
