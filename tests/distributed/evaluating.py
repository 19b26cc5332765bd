"""A small evaluation, alone and, as a script, in every process that a launcher starts; each leaves what it found."""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from ldmkit.evaluation import Features, Reference, Targets, evaluate
from ldmkit.training.parallel import process_group, rank

SIDE = 12


class Net(nn.Module):
    """Five features of an image, each image alone, in float64."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("taps", torch.randn(3 * SIDE * SIDE, 5, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return (x.flatten(1).double()[:, :, None] * self.taps).sum(1)


def images(count, seed, spread=1.0):
    pixels = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return Targets([{"target": one} for one in spread * pixels])


def found():
    """Everything there is, on counts that no number of processes divides, and on fewer images than processes."""
    features = Features("small", Net().eval(), head=lambda x: 0.1 * x)
    reference = Reference(images(61, 1), features, batch=4, subset_size=20, subsets=7, splits=3)
    made, truth = images(37, 2, 0.9), images(37, 3)
    report = evaluate(made, reference, truth=truth, floor=images(40, 4), batch=5, progress=False)
    two = evaluate(images(2, 6), Reference(images(2, 5), features, ("fd",)), progress=False)
    return report, {
        "figures": dict(report.figures),
        "floor": dict(report.floor),
        "pairs": {name: [one.mean, one.standard_error, *one.interval] for name, one in report.pairs.items()},
        "two": dict(two.figures),
        "shown": report.shown.sum((1, 2, 3)).tolist(),
    }


if __name__ == "__main__":
    warnings.simplefilter("error")
    out = Path(sys.argv[1])
    with process_group():
        report, numbers = found()
        report.write(out / "report")
        (out / f"{rank()}.json").write_text(json.dumps(numbers))
