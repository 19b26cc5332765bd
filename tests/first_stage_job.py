"""A small first stage to train, alone and, as a script, in every process that a launcher starts."""

import sys
import warnings
from pathlib import Path

import torch

from ldmkit.first_stages import KL, VQ
from ldmkit.training.compression import Compression
from ldmkit.training.discriminator import Adversary, PatchGAN
from ldmkit.training.first_stage import CodebookWeight, FirstStageLoss, KLWeight, LogVariance, MeanError
from ldmkit.training.loop import train
from ldmkit.training.parallel import Sharded, process_group, replicated
from ldmkit.training.perceptual import GradientDistance
from ldmkit.training.run import Run

SPREADS = {"replicated": replicated, "sharded": Sharded()}
TINY = {"base_channels": 32, "num_res_blocks": 1, "resolution": 16, "channels": 3, "channel_mult": (1, 2)}


def images(count=12):
    """Smooth pictures: four random colours, blended."""
    corners = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    pictures = torch.nn.functional.interpolate(corners, size=16, mode="bilinear", align_corners=True)
    return [{"target": picture} for picture in pictures]


def compression(kind, start=2):
    """A ``kl`` or ``vq`` first stage with every term, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        stage = KL(**TINY) if kind == "kl" else VQ(codebook_size=16, **TINY)
        loss = {
            "kl": FirstStageLoss(GradientDistance(), KLWeight(), fit=LogVariance()),
            "vq": FirstStageLoss(GradientDistance(), CodebookWeight(), fit=MeanError()),
        }[kind]
        adversary = Adversary(PatchGAN(base_channels=4, layers=1), start=start)
    return Compression(stage, loss, adversary, [record["target"] for record in images(3)])


def plain(weights):
    """No moments: Adam makes 1 of the smallest gradient, and so of the order of a sum."""
    return torch.optim.SGD(weights, lr=0.0)


def run(out, steps=4, **options):
    """A run of small steps."""
    given = {"batch": 4, "rate": lambda step: 0.2, "save_every": 2, "log_every": 2, "show_every": 4, "progress": False}
    return Run(out=out, steps=steps, **{**given, "optimizer": plain, "ema": None, **options})


if __name__ == "__main__":
    warnings.simplefilter("error")
    with process_group():
        for kind in ("kl", "vq"):
            for name, spread in SPREADS.items():
                train(compression(kind), images(), run(Path(sys.argv[1]) / f"{kind}-{name}", spread=spread))
