"""One call in this process, which was started for it: prints the bytes held before and at the peak, as JSON.

``python -m tests.benchmarks.tiled_peak CALL WAY SIDE DEVICE DTYPE``, as :mod:`tests.benchmarks.tiling` does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ldmkit import LatentDiffusion
from ldmkit.backbones.unet import UNet
from ldmkit.first_stages import KL, Tiled, TiledExact
from ldmkit.process import VP
from ldmkit.tiling import Tiles

from .measure import Call, Setting
from .networks import draw, filled
from .peak import measured

TILE, OVERLAP = 512, 64
"""Pixels."""
ON_CPU = "tiled-exact, maps on the CPU"


class Stage(Protocol):
    """What is measured of a first stage."""

    def decode(self, z: Tensor) -> Tensor: ...


def first_stage(setting: Setting) -> KL:
    """A narrow KL first stage with f = 8."""
    with torch.device("meta"):
        network = KL(base_channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=1)
    return filled(network, setting)


def wrapped(way: str, stage: KL, tile: int = TILE, overlap: int = OVERLAP) -> Stage:
    """The first stage that decodes in this way."""
    ways: dict[str, Callable[[], nn.Module]] = {
        "whole": lambda: stage,
        "tiled": lambda: Tiled(stage, tile, overlap),
        "tiled-exact": lambda: TiledExact(stage, tile),
        ON_CPU: lambda: TiledExact(stage, tile, store="cpu"),
    }
    return cast(Stage, ways[way]())


def decode(way: str, side: int, setting: Setting) -> Call:
    """One decode to ``side`` pixels."""
    stage = wrapped(way, first_stage(setting))
    z = draw(setting, 1, 4, side // 8, side // 8)
    return lambda: stage.decode(z)


def step(way: str, side: int, setting: Setting) -> Call:
    """One step of sampling latents of ``side`` pixels."""
    options = {"model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "num_heads": 2}
    with torch.device("meta"):
        network = UNet(4, **options, attention_resolutions=(2,))
    model = LatentDiffusion(first_stage=first_stage(setting), backbone=filled(network, setting), process=VP()).eval()
    tiles = None if way == "whole" else Tiles(TILE, OVERLAP)
    return lambda: model.sample(size=(side, side), levels=1, tiles=tiles)


def main(words: list[str]) -> None:
    """Measure what the words say."""
    what, way, side, device, dtype = words
    setting = Setting(device=torch.device(device), dtype=getattr(torch, dtype))
    make = decode if what == "decode" else step
    with torch.inference_mode():
        make(way, 64, setting)()  # kernels are loaded and chosen at the first call
        print(json.dumps(measured(make(way, int(side), setting), setting.device)))


if __name__ == "__main__":
    main(sys.argv[1:])
