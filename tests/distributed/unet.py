"""A small model with a unet to train, alone and, as a script, in every process that a launcher starts."""

import sys
import warnings
from pathlib import Path

import torch

import ldmkit
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.loop import train
from ldmkit.training.parallel import Sharded, process_group, rank
from ldmkit.training.run import Run

UNET = "model.denoiser.backbone"
LAYERS = [f"{UNET}.input_blocks.*.*", f"{UNET}.middle_block.*", f"{UNET}.output_blocks.*.*"]
WAYS = {
    "replicated": {},
    "whole": {"spread": Sharded()},
    "layers": {"spread": Sharded(*LAYERS)},
    "frugal": {"spread": Sharded(*LAYERS), "accumulate": 2},
}


def model(checkpoint=False):
    """Class-conditional by cross-attention, the same each time; nothing in it starts at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        backbone = ldmkit.build(
            "backbone",
            "unet",
            channels=1,
            model_channels=32,
            channel_mult=[1, 1],
            num_res_blocks=1,
            attention_resolutions=[2],
            num_heads=2,
            context_dim=8,
            checkpoint=checkpoint,
        )
        for weight in backbone.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        return ldmkit.LatentDiffusion(
            first_stage=ldmkit.build("first-stage", "pixel", channels=1),
            backbone=backbone,
            process=ldmkit.build("process", "vp"),
            conditioner=ldmkit.Joint({"kind": ldmkit.build("conditioner", "class-label", classes=3, width=8)}),
        )


def records(count=10):
    """Noise and a class."""
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    return [{"target": image, "label": i % 3} for i, image in enumerate(images)]


def plain(weights):
    """No moments: Adam makes 1 of the smallest gradient, and so of the order of a sum."""
    return torch.optim.SGD(weights, lr=0.0)


def run(out, steps=3, **options):
    """A run of small steps."""
    given = {"batch": 4, "rate": lambda step: 0.05, "ema": 0.9, "optimizer": plain, "progress": False}
    return Run(out=out, steps=steps, save_every=2, log_every=1, show_every=2, **{**given, **options})


def finished(out, checkpoint=False, **options):
    """The model after such a run, which has shown samples."""
    made = model(checkpoint)
    shown = {"label": [0, 2], "height": 8, "width": 8, "num_inference_steps": 2, "seed": 0}
    train(Diffusion(made, "class-conditional", samples=shown), records(), run(out, **options))
    return made


def main(out):
    """Every way; afterwards one process uses what it trained without the others."""
    with process_group():
        for name, options in WAYS.items():
            made = finished(out / name, checkpoint=name == "frugal", **options)
            if rank() == 0:
                made.save(out / f"{name}.safetensors")
                torch.save(made.loss(batch(), (0, 1)).detach(), out / f"{name}.pt")


def batch():
    """What the loss of a trained model is compared on."""
    return {"image": torch.linspace(-1, 1, 128).view(2, 1, 8, 8), "label": torch.tensor([0, 1])}


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(Path(sys.argv[1]))
