"""Measure the bundled model and write the record beside it.

    python -m ldmkit.demo.evaluate --model runs/digits/digits.safetensors

*Reconstruction*: how far the first stage is from held-out digits. *Class share*: the share of samples that a classifier
(a support-vector machine, trained on the real training digits at 8 x 8) reads as the class asked for; the same
classifier on real held-out digits is the ceiling. *Copies*: distances of samples to the nearest training digit against
those to the nearest held-out digit, among equally many of each; a model that copies its training digits is nearer to
them.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ldmkit.demo import CLASSES, RECORD, SIZE
from ldmkit.demo.digits import Digits, load_digits
from ldmkit.guidance import CFG
from ldmkit.model import LatentDiffusion
from ldmkit.registry import build
from ldmkit.weights.native import load, read_recipe

RUNS = {"ddim": (25, 2000), "plms": (25, 2000), "ddpm": (250, 500)}
"""Sampler -> (steps, samples)."""
SCALE = 2.0
FIRST_SEED = 1_000_000


def main() -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(prog="python -m ldmkit.demo.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    model, (train, test) = load(options.model), load_digits()
    reader = SVC(C=10.0, gamma=0.02).fit(small(train.image), train.label.numpy())
    share = {"real test digits": right(reader, test)}
    record: dict[str, Any] = {
        "trained": dict(read_recipe(options.model).notes),
        "measured_with": "python -m ldmkit.demo.evaluate",
        "guidance_scale": SCALE,
        "steps": {sampler: steps for sampler, (steps, _) in RUNS.items()},
        "samples": {sampler: count for sampler, (_, count) in RUNS.items()},
        "first_seed": FIRST_SEED,
        "reconstruction": reconstruction(model, test),
        "class_share": share,
    }
    for sampler, (steps, count) in RUNS.items():
        digits = sampled(model, sampler, steps, count)
        share[sampler] = right(reader, digits)
        if sampler == "ddim":
            record["copies"] = copies(digits, train, test)
    options.record.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def sampled(model: LatentDiffusion, sampler: str, steps: int, count: int) -> Digits:
    """Every class equally often, in batches of 100."""
    images, labels = [], torch.arange(count) % CLASSES
    for first in tqdm(range(0, count, 100), desc=sampler, unit="batch"):
        label = labels[first : first + 100]
        z = model.sample(
            {"label": label},
            size=(SIZE, SIZE),
            seed=FIRST_SEED + first,
            levels=steps,
            sampler=build("sampler", sampler),
            guidance=CFG(SCALE),
        )
        images.append(model.decode(z).clamp(-1, 1))
    return Digits(torch.cat(images), labels)


def small(image: Tensor) -> Any:  # noqa: ANN401 - a NumPy array for scikit-learn
    """Images at the size they were scanned at, as rows: what the classifier and the distances read."""
    return functional.interpolate(image, size=(8, 8), mode="area").flatten(1).numpy()


def right(reader: SVC, digits: Digits) -> float:
    """The share that reads as its label."""
    return float((reader.predict(small(digits.image)) == digits.label.numpy()).mean())


def reconstruction(model: LatentDiffusion, test: Digits) -> dict[str, float]:
    """Mean absolute error and PSNR on held-out digits, in images of [0, 1]."""
    again = model.decode(model.encode(test.image)).clamp(-1, 1)
    difference = (again - test.image) / 2
    square = float(difference.square().mean())
    return {"mean_absolute_error": float(difference.abs().mean()), "psnr_db": -10 * math.log10(square)}


def copies(digits: Digits, train: Digits, test: Digits) -> dict[str, float]:
    """Distances to the nearest real digit, as many of the training as of the held-out part.

    Returns:
        Median distance to the nearest of each, the share of samples nearer to a training digit (half, for a model
        that copies nothing), and the median distance from held-out digits to their nearest training digit.
    """
    step = len(train) / len(test)
    kept = torch.tensor([int(i * step) for i in range(len(test))])
    samples, all_seen, unseen = (torch.from_numpy(small(part.image)) for part in (digits, train, test))
    seen = all_seen[kept]
    to_seen, to_unseen = torch.cdist(samples, seen).amin(1), torch.cdist(samples, unseen).amin(1)
    return {
        "median_distance_to_training_digits": float(to_seen.median()),
        "median_distance_to_held_out_digits": float(to_unseen.median()),
        "share_nearer_to_training_digits": float((to_seen < to_unseen).float().mean()),
        "median_distance_held_out_to_training": float(torch.cdist(unseen, seen).amin(1).median()),
        "smallest_distance_to_any_training_digit": float(torch.cdist(samples, all_seen).min()),
        "smallest_distance_held_out_to_any_training_digit": float(torch.cdist(unseen, all_seen).min()),
    }


if __name__ == "__main__":
    main()
