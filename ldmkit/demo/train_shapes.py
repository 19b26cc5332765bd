"""Train the bundled models of shape scenes: one first stage, then one network per condition.

    python -m ldmkit.demo.train_shapes text --out runs/shapes

Every run can be stopped at any time and goes on where it was. Scenes are drawn once per image and seed; latents are
encoded once, since the first stage is frozen by then.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ldmkit.conditioners.spatial import masked_image
from ldmkit.data import ShapeScenes
from ldmkit.demo.shapes import FACTOR, FIRST_STAGE, NAMES, SIDE, SOURCES, WORDS, shapes
from ldmkit.demo.train import run, warm_cosine
from ldmkit.first_stages.kl import KL
from ldmkit.latents import latent_statistics
from ldmkit.model import LatentDiffusion, compose
from ldmkit.noise import Noise
from ldmkit.registry import build_part
from ldmkit.training import EMA
from ldmkit.training.order import indices, sample_seeds

SEED = 211210752
SCENES = 24_000
FIRST_STAGE_STEPS = 1500
FIRST_STAGE_BATCH = 16
STEPS = {"text": 5000, "layout": 5000, "semantic": 700, "super-resolution": 700, "inpainting": 700}
BATCH = 32
KL_WEIGHT = 1e-5
VIEWS = {
    "text": "prompt",
    "layout": "boxes",
    "semantic": "segmentation",
    "super-resolution": "low_res",
    "inpainting": "mask_image",
}


def main() -> None:
    """Train the first stage, where it is not trained yet, and one model."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit.demo.train_shapes", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, default=Path("runs/shapes"), help="folder for progress and the result")
    parser.add_argument("--first-stage-steps", type=int, default=FIRST_STAGE_STEPS)
    parser.add_argument("--steps", type=int, default=None, help=f"default: {STEPS}")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps = options.steps or STEPS[options.name]
    torch.manual_seed(SEED)  # the initial weights
    records = scenes(VIEWS[options.name])
    stage = first_stage(records["target"], options.first_stage_steps, options.out)
    model = compose_with_words(options.name)
    model.stage.load_state_dict(stage.state_dict())  # type: ignore[attr-defined]
    seconds = train(options.name, model, records, steps, options.out)
    notes = {
        "data": f"ShapeScenes, {SCENES:,} of split 'train', {SIDE} x {SIDE}",
        "command": f"python -m ldmkit.demo.train_shapes {options.name}",
        "seed": SEED,
        "batch": BATCH,
        "first_stage_steps": options.first_stage_steps,
        "steps": steps,
        "seconds": round(seconds),
        "weights": "exponential moving average, decay 0.999; the network in bfloat16",
        "license": "MIT",
    }
    path = options.out / f"shapes-{options.name}.safetensors"
    model.eval().cast(torch.bfloat16).save(path, notes)
    print(json.dumps({"seconds": round(seconds), "threads": torch.get_num_threads(), "wrote": str(path)}))


def scenes(view: str) -> dict[str, Any]:
    """Every record of the data set: images as uint8 tensors, prompts and boxes as lists."""
    data = ShapeScenes(SCENES, SIDE, "train", SEED, ("prompt",) if view == "target" else (view,), FACTOR)
    found: dict[str, list[Any]] = {}
    for i in tqdm(range(len(data)), desc="drawing", unit="scene"):
        for key, value in data[i].items():
            small = isinstance(value, Tensor) and value.is_floating_point()
            found.setdefault(key, []).append((value * 255).round().byte() if small else value)
    return {key: torch.stack(rows) if isinstance(rows[0], Tensor) else rows for key, rows in found.items()}


def unit(image: Tensor) -> Tensor:
    """Bytes to [-1, 1]."""
    return image.float() / 127.5 - 1


def first_stage(images: Tensor, steps: int, out: Path) -> KL:
    """The first stage that all models share, trained or read."""
    stage: KL = build_part("first-stage", FIRST_STAGE)
    path = out / "first_stage_weights.pt"
    if path.exists():
        stage.load_state_dict(torch.load(path, weights_only=True))
        return stage.eval()
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-3, weight_decay=0.0)

    def loss_of(step: int) -> Tensor:
        rows = indices(SEED, step * FIRST_STAGE_BATCH, FIRST_STAGE_BATCH, len(images))
        image = unit(images[rows])
        noise = Noise(sample_seeds(SEED, step * FIRST_STAGE_BATCH, FIRST_STAGE_BATCH))
        posterior = stage.posterior(image)
        again = stage.decode(posterior.sample(noise.on("posterior").constant(posterior.mean)) * stage.scale)
        distance = functional.l1_loss(again, image) + functional.mse_loss(again, image)
        return distance + KL_WEIGHT * posterior.kl().mean()

    run(
        "first stage",
        stage,
        optimizer,
        EMA(stage, 0.999),
        loss_of,
        steps,
        warm_cosine(1e-3, steps),
        out / "first_stage.pt",
    )
    stage.eval()
    measured = latent_statistics(stage, (unit(images[i : i + 128]) for i in range(0, 2048, 128)))
    stage.scale.mul_(measured.rescaling)
    torch.save(stage.state_dict(), path)
    return stage


def compose_with_words(name: str) -> LatentDiffusion:
    """The model, with the words of its tokenizer where it has one."""
    model = compose(shapes(name))
    if name == "text":
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = Path(folder) / "vocab.txt"
            vocabulary.write_text("\n".join(WORDS) + "\n")
            conditioner = cast(nn.Module, model.conditioner).get_submodule("sources.condition")
            conditioner.read_tokenizer(str(vocabulary))  # type: ignore[operator]
    return model


@torch.no_grad()
def encoded(stage: KL, image: Tensor, seed: int) -> Tensor:
    """Scaled latents of images in [-1, 1], each drawn by its own seed."""
    parts = []
    for first in tqdm(range(0, len(image), 256), desc="encoding", unit="batch"):
        part = unit(image[first : first + 256])
        like = part.new_empty(len(part), stage.channels, SIDE // FACTOR, SIDE // FACTOR)
        noise = Noise(tuple(seed + i for i in range(first, first + len(part)))).on("posterior").constant(like)
        parts.append(stage.encode(part, noise))
    return torch.cat(parts)


@torch.no_grad()
def conditions(name: str, model: LatentDiffusion, records: Mapping[str, Any]) -> dict[str, Any]:
    """What the conditioner reads of every scene, in its own keys."""
    if name == "super-resolution":
        return {"low_res": unit(records["low_res"])}
    if name != "inpainting":
        return {VIEWS[name]: records[VIEWS[name]]}
    mask = (records["mask_image"] > 127).float()
    hole = cast(Any, SOURCES[name].part.options.get("hole", -1.0))
    stage = cast(KL, model.first_stage)
    parts = zip(records["image"].split(256), mask.split(256), strict=True)
    latents = [stage.encode(masked_image(unit(image), hidden, hole)) for image, hidden in parts]
    return {"masked_image_latent": torch.cat(latents), "mask": mask}


def train(name: str, model: LatentDiffusion, records: Mapping[str, Any], steps: int, out: Path) -> float:
    """The denoising objective on cached latents; leaves the averaged weights in the model."""
    latents = encoded(cast(KL, model.first_stage), records["target"], SEED)
    told = conditions(name, model, records)
    trained = nn.ModuleList([model.denoiser, cast(nn.Module, model.conditioner)])
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.01)

    def loss_of(step: int) -> Tensor:
        rows = indices(SEED + 1, step * BATCH, BATCH, len(latents))
        batch = {
            key: value[rows] if isinstance(value, Tensor) else [value[i] for i in rows] for key, value in told.items()
        }
        return model.loss({**batch, "latent": latents[rows]}, sample_seeds(SEED + 1, step * BATCH, BATCH))

    model.train()
    return run(
        name, trained, optimizer, EMA(trained, 0.999), loss_of, steps, warm_cosine(1e-3, steps), out / f"{name}.pt"
    )


if __name__ == "__main__":
    main()
