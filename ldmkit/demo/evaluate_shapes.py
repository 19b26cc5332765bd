"""Measure the bundled models of shape scenes on held-out scenes, and write the record beside them.

    python -m ldmkit.demo.evaluate_shapes

Every number is counted by reading scenes back from pixels; see :mod:`ldmkit.data.fidelity`. ``ceiling`` is what the
first stage's reconstructions of the true images score: no model of its latents can be expected to do better. ``chance``
is what the true image of another scene scores: a model that draws well and heeds no condition does no better.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmkit.data import ShapeScenes
from ldmkit.data.fidelity import known_region_error, low_res_error, measure
from ldmkit.data.scenes import Scene
from ldmkit.demo.shapes import FACTOR, KEYWORDS, NAMES, RECORD, SIDE, TASKS, VIEWS, file
from ldmkit.pipelines import Pipeline, pipeline
from ldmkit.training.metrics import psnr
from ldmkit.weights.native import read_recipe, write_atomically

COUNT = 256
STEPS = 25
SEED = 1_000_000
SCALES = {"text": 2.0, "layout": 2.0}


def main() -> None:
    """Sample every bundled model on the same scenes, print and write what was counted."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit.demo.evaluate_shapes", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every model whose file is there")
    parser.add_argument("--count", type=int, default=COUNT, help="held-out scenes")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.names or [name for name in NAMES if file(name).exists()]:
        record[name] = evaluated(name, options.count)
        print(name, json.dumps(record[name]["measured"]), flush=True)
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(options.out, lambda partial: partial.write_text(text))


def evaluated(name: str, count: int) -> dict[str, Any]:
    """How a model was trained, and what it makes of held-out scenes."""
    data = ShapeScenes(count, SIDE, "test", 0, (VIEWS[name],), FACTOR)
    records = [data[i] for i in range(count)]
    scenes = [data.scene(i) for i in range(count)]
    target = torch.stack([record["target"] for record in records])
    pipe = pipeline(TASKS[name], file(name))
    made = images_of(pipe, name, records)
    again = (pipe.model.decode(pipe.model.encode(2 * target - 1)) / 2 + 0.5).clamp(0, 1)
    return {
        "trained": dict(read_recipe(file(name)).notes),
        "measured_with": "python -m ldmkit.demo.evaluate_shapes",
        "split": "test",
        "scenes": count,
        "sampler": {"name": "ddim", "steps": STEPS, "guidance_scale": SCALES.get(name, 1.0), "first_seed": SEED},
        "measured": scores(scenes, made, target, records),
        "ceiling": scores(scenes, again, target, records),
        "chance": scores(scenes, target.roll(1, 0), target, records),
    }


def images_of(pipe: Pipeline, name: str, records: list[dict[str, Any]]) -> Tensor:
    """One image per record, (B, 3, side, side) in [0, 1]."""
    keys = [key for key in records[0] if key != "target"]
    inputs: dict[str, Any] = {KEYWORDS.get(key, key): [record[key] for record in records] for key in keys}
    side = SIDE if name in SCALES else None
    out = pipe(
        **inputs,
        height=side,
        width=side,
        num_inference_steps=STEPS,
        guidance_scale=SCALES.get(name, 1.0),
        seed=SEED,
        max_batch=64,
        output_type="pt",
        progress=False,
    )
    images: Tensor = out.images
    return images


def scores(scenes: list[Scene], images: Tensor, target: Tensor, records: list[dict[str, Any]]) -> dict[str, float]:
    """What was counted, rounded to four digits."""
    found = {key: float(value) for key, value in asdict(measure(scenes, images)).items()}
    found["psnr_db"] = float(psnr(images.float(), target).mean())
    if "low_res" in records[0]:
        found["low_res_error"] = float(low_res_error(images, torch.stack([r["low_res"] for r in records])).mean())
    if "mask_image" in records[0]:
        mask = torch.stack([record["mask_image"] for record in records])
        found["known_region_error"] = float(known_region_error(target, images.float(), mask).max())
    return {key: round(value, 4) for key, value in found.items()}


if __name__ == "__main__":
    main()
