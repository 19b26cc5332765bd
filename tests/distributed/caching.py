"""Cached by every process that a launcher starts, and by one; the tests compare what they leave."""

import sys
import warnings
from pathlib import Path

import torch

import ldmkit
from ldmkit.noise import Noise
from ldmkit.training.cache import cache_latents
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.encodings import cache_encodings
from ldmkit.training.loop import train
from ldmkit.training.optim import constant
from ldmkit.training.run import Run

SIZE = 8
LENGTH = 3


class Words(torch.nn.Module):
    """A small frozen text encoder: a vector per word, mixed along the text; a mask hides what is not there."""

    reads = ("prompt",)

    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.provides = {"context": width}
        self.calls = []
        self.embedding = torch.nn.Embedding(64, width)
        self.mix = torch.nn.Linear(width, width)
        self.requires_grad_(False)

    def forward(self, batch):
        self.calls.append(list(batch["prompt"]))
        words = [prompt.split()[:LENGTH] for prompt in batch["prompt"]]
        rows = [[sum(map(ord, word)) % 63 + 1 for word in row] + [0] * (LENGTH - len(row)) for row in words]
        ids = torch.tensor(rows, device=self.mix.weight.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 1:] = ids[:, 1:] > 0
        return ldmkit.Conditioning(context=self.mix(self.embedding(ids).cumsum(1)), context_mask=mask)

    def null(self, batch):
        return self({"prompt": [""] * len(batch["prompt"])})


def model(first_stage="kl", drop=0.5, **options):
    """A model of images and texts that are a few numbers each; its last layer is not zero, so that losses differ."""
    torch.manual_seed(1)
    tiny = {"channels": 2, "base_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "image_channels": 1}
    tiny |= {"vq": {"codebook_size": 8}, "pixel": {}, "kl": {}}[first_stage]
    tiny = {"channels": 1} if first_stage == "pixel" else tiny
    stage = ldmkit.build("first-stage", first_stage, **{**tiny, **options})
    backbone = ldmkit.build(
        "backbone",
        "unet",
        channels=stage.channels,
        model_channels=32,
        channel_mult=[1],
        num_res_blocks=1,
        attention_resolutions=[1],
        num_heads=1,
        context_dim=8,
    )
    for name, weight in backbone.named_parameters():
        torch.nn.init.normal_(weight, std=0.5 if "attn2" in name else 0.1)
    joint = ldmkit.Joint({"text": Words()}, drop={"text": drop})
    process = ldmkit.build("process", "vp")
    return ldmkit.LatentDiffusion(first_stage=stage, backbone=backbone, process=process, conditioner=joint)


def records(count=10, size=SIZE, seed=4):
    """Pictures with texts, of which some are equal."""
    images = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
    prompts = ["a red cat", "a dog", "", "one blue bird"]
    return [{"target": image, "prompt": prompts[i % 4], "place": i} for i, image in enumerate(images)]


def grain(record, seed):
    """An augmentation that draws."""
    noise = Noise((seed,)).constant(record["target"][None])[0]
    return {**record, "target": (record["target"] + 0.1 * noise).clamp(0, 1)}


def cached(out, made, **options):
    """Both caches of a model."""
    quiet = {"batch": 2, "shard": 2, "progress": False}
    latents = cache_latents(records(), made.stage, out / "latents", augment=grain, passes=2, **quiet, **options)
    return latents, cache_encodings(latents, made, "text-to-image", out / "text", ["text"], **quiet, **options)


def both(out):
    """Latents, encodings, and a short run on them."""
    made = model()
    latents, encodings = cached(out, made)
    made.conditioner.sources["text"].calls.clear()
    run = Run(out=out / "run", steps=2, batch=4, rate=constant(1e-3), progress=False)
    trainee = Diffusion(made, "text-to-image", encodings=encodings)
    trainee.export = lambda path, notes: torch.save(made.denoiser.state_dict(), path)
    train(trainee, latents, run)
    assert not made.conditioner.sources["text"].calls


if __name__ == "__main__":
    warnings.simplefilter("error")
    from distributed import caching  # under the name by which the tests know its classes

    caching.both(Path(sys.argv[1]))
