"""Train the bundled models of shape scenes: one first stage, then one network per condition.

    python -m ldmkit.demo.train_shapes text --out runs/shapes

Every run can be stopped at any time and goes on where it was. Scenes are drawn and encoded once, since the first stage
is frozen by the time a network learns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

import ldmkit
from ldmkit.data import ShapeScenes
from ldmkit.demo.shapes import FACTOR, FIRST_STAGE, KEYWORDS, NAMES, SIDE, TASKS, VIEWS, WORDS, shapes
from ldmkit.demo.train import halved
from ldmkit.first_stages.kl import KL
from ldmkit.latents import latent_statistics
from ldmkit.model import LatentDiffusion, compose
from ldmkit.registry import build_part
from ldmkit.training.compression import Compression, load_first_stage
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.first_stage import FirstStageLoss, KLWeight, l1, l2
from ldmkit.training.log import seconds
from ldmkit.training.loop import RESULT, train
from ldmkit.training.optim import cosine
from ldmkit.training.run import Run

SEED = 211210752
SCENES = 50_000
FIRST_STAGE_STEPS = 3000
FIRST_STAGE_BATCH = 16
STEPS = {"text": 10_000, "layout": 10_000, "semantic": 2500, "super-resolution": 2000, "inpainting": 2000}
BATCH = 32
LONGER = 1.4
"""The rate falls as for so many times the steps: it ends at a fifth, and averaging does the rest."""
KL_WEIGHT = 1e-5


def main() -> None:
    """Train the first stage, where it is not trained yet, and one model."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit.demo.train_shapes", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, default=Path("runs/shapes"), help="folder for progress and the result")
    parser.add_argument("--first-stage-steps", type=int, default=FIRST_STAGE_STEPS)
    parser.add_argument("--steps", type=int, default=None, help=f"default: {STEPS}")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--start", type=Path, help="a model of the same name to go on from, such as the bundled one")
    options = parser.parse_args()
    steps = options.steps or STEPS[options.name]
    path = trained(options.name, options.out, options.first_stage_steps, steps, options.scenes, options.start)
    print(json.dumps({"threads": torch.get_num_threads(), "wrote": str(path)}))


def trained(name: str, out: Path, first_stage_steps: int, steps: int, scenes: int, start: Path | None = None) -> Path:
    """One model, from nothing, from another's weights, or from where its run is.

    Returns:
        The file, in bfloat16.
    """
    model = begun(name, out, first_stage_steps, scenes) if start is None else ldmkit.load(start).float()
    run = Run(
        out=out / name,
        steps=steps,
        batch=BATCH,
        rate=cosine(1e-3, round(LONGER * steps), warm_up=min(200, steps // 2)),
        ema=0.999,
        seed=SEED + 1,
    )
    result = train(Diffusion(model, TASKS[name]), encoded(model, name, scenes), run)
    notes = {
        "data": f"ShapeScenes, {scenes:,} of split 'train', {SIDE} x {SIDE}",
        "command": f"python -m ldmkit.demo.train_shapes {name}" + ("" if start is None else f" --start {start.name}"),
        "seed": SEED,
        "batch": BATCH,
        "first_stage_steps": first_stage_steps,
        "steps": steps,
        "seconds": seconds(out / name / "log.jsonl", BATCH),
        "weights": "exponential moving average, decay 0.999; in bfloat16",
        "license": "MIT",
    }
    path = out / f"shapes-{name}.safetensors"
    return halved(ldmkit.load(result)).save(path, notes)


def begun(name: str, out: Path, first_stage_steps: int, scenes: int) -> LatentDiffusion:
    """A model that has learned nothing, with the first stage that all share."""
    stage = first_stage(out / "first-stage", first_stage_steps, scenes)
    torch.manual_seed(SEED)  # the first weights
    model = compose_with_words(name)
    cast(nn.Module, model.stage).load_state_dict(stage.state_dict())
    return model


def both(image: Tensor, made: Tensor) -> Tensor:
    """Absolute plus squared error of every element."""
    return l1(image, made) + l2(image, made)


def first_stage(out: Path, steps: int, scenes: int) -> KL:
    """The first stage that all models share, its scale measured, trained or read."""
    torch.manual_seed(SEED)  # the first weights
    stage: KL = build_part("first-stage", FIRST_STAGE)
    data = ShapeScenes(scenes, SIDE, "train", SEED, ())
    run = Run(
        out=out,
        steps=steps,
        batch=FIRST_STAGE_BATCH,
        rate=cosine(1e-3, steps, warm_up=min(200, steps // 2)),
        ema=0.999,
        seed=SEED,
    )
    path = out / RESULT
    if not path.exists():
        train(Compression(stage, FirstStageLoss(None, KLWeight(KL_WEIGHT), both)), data, run)
    stage = cast(KL, load_first_stage(path))
    count = min(2048, scenes)
    images = (2 * torch.stack([data[i]["target"] for i in range(at, at + 128)]) - 1 for at in range(0, count, 128))
    stage.scale.mul_(latent_statistics(stage, images).rescaling)
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


@dataclass(frozen=True)
class Encoded:
    """Scenes with their posteriors in place of their images.

    Args:
        mean: (N, c, h, w), scaled.
        std: (N, c, h, w), what a draw adds to it.
        told: N records of what the task takes.
    """

    mean: Tensor
    std: Tensor
    told: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.told)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"latent": self.mean[place], "latent_std": self.std[place], **self.told[place]}


@torch.no_grad()
def encoded(model: LatentDiffusion, name: str, scenes: int) -> Encoded:
    """Every scene of the data set, drawn and encoded."""
    data = ShapeScenes(scenes, SIDE, "train", SEED, (VIEWS[name],), FACTOR)
    stage = cast(KL, model.stage)
    told: list[dict[str, Any]] = []
    means, deviations = [], []
    for first in tqdm(range(0, scenes, 256), desc="drawing and encoding", unit="batch"):
        records = [data[i] for i in range(first, min(first + 256, scenes))]
        posterior = stage.posterior(2 * torch.stack([record.pop("target") for record in records]) - 1)
        means.append(posterior.mean * stage.scale)
        deviations.append(posterior.std * stage.scale)
        told += [{KEYWORDS.get(key, key): value for key, value in record.items()} for record in records]
    return Encoded(torch.cat(means), torch.cat(deviations), told)


if __name__ == "__main__":
    main()
