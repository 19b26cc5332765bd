"""Two bundled first stages of real photographs, and the photographs: those they learn from and those held out.

The photographs lie in the wheels of scikit-image and scikit-learn, so that nothing is fetched. The split is by
photograph: no crop of a held-out one is ever learned from. :mod:`ldmkit.demo.train_photos` trains the two stages,
:mod:`ldmkit.demo.evaluate_photos` measures them beside bicubic resampling, and ``photos.json`` says how and with what
result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldmkit.composition import FirstStage
from ldmkit.data.draws import Draws
from ldmkit.data.resampling import cubic, smooth_cubic
from ldmkit.parts import Part
from ldmkit.training.compression import load_first_stage
from ldmkit.training.contract import Record

HERE = Path(__file__).parent
RECORD = HERE / "photos.json"
SIDE = 64
FACTOR = 4
CHANNELS = 3
CODES = 8192

TRAINING: Mapping[str, str] = {
    "astronaut": "Eileen Collins, NASA; public domain (scikit-image)",
    "china": "danielbuechele, a pavilion; CC BY 2.0 (scikit-learn)",
    "immunohistochemistry": "a stained section of colon, CMMI; no known copyright (scikit-image)",
    "motorcycle": "D. Scharstein et al., Middlebury 2014, the left view (scikit-image)",
    "rocket": "SpaceX, DSCOVR on Falcon 9; public domain (scikit-image)",
}
"""Photographs that are learned from, and whose they are."""

HELD_OUT: Mapping[str, str] = {
    "chelsea": "Stefan van der Walt, a cat; CC0 (scikit-image)",
    "coffee": "Rachel Michetti, a cup; CC0 (scikit-image)",
    "flower": "vultilion, a dahlia; CC BY 2.0 (scikit-learn)",
}
"""Photographs that only measure."""

_NETWORK: Mapping[str, object] = {
    "channels": CHANNELS,
    "base_channels": 32,
    "channel_mult": [3, 1, 3],
    "num_res_blocks": 1,
    "attention": False,
    "resolution": SIDE,
}
STAGES: Mapping[str, Part] = {"kl": Part("kl", _NETWORK), "vq": Part("vq", {**_NETWORK, "codebook_size": CODES})}
NAMES = tuple(STAGES)


def file(name: str) -> Path:
    """Where a bundled first stage is.

    Raises:
        KeyError: no such first stage; the names are ``NAMES``.
    """
    if name not in STAGES:
        raise KeyError(f"the first stages of photographs are {', '.join(NAMES)}, got {name!r}")
    return HERE / f"photos-{name}.safetensors"


def bundled(name: str) -> FirstStage:
    """A bundled first stage in float32, for images (B, 3, H, W) in [-1, 1] with sides that are multiples of 4.

    Raises:
        KeyError: no such first stage; the names are ``NAMES``.
    """
    return cast(FirstStage, cast(nn.Module, load_first_stage(file(name))).float())


@cache
def photograph(name: str) -> Tensor:
    """One of the photographs.

    Args:
        name: of ``TRAINING`` or ``HELD_OUT``.

    Returns:
        (3, H, W) in [0, 1].

    Raises:
        KeyError: no such photograph.
        ImportError: the package that ships it is not installed.
    """
    if name not in TRAINING and name not in HELD_OUT:
        raise KeyError(f"the photographs are {', '.join((*TRAINING, *HELD_OUT))}, got {name!r}")
    if name in ("china", "flower"):
        pixels = _module("sklearn.datasets").load_sample_image(f"{name}.jpg")
    else:
        found = _module("skimage.data")
        pixels = found.stereo_motorcycle()[0] if name == "motorcycle" else getattr(found, name)()
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _module(name: str) -> Any:  # noqa: ANN401 - a module
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the photographs come with scikit-image and scikit-learn, and {name} cannot be imported: pip install "
            "ldmkit[photos]"
        ) from error


def records() -> list[Record]:
    """The training photographs, for the loop."""
    return [{"target": photograph(name)} for name in TRAINING]


def crops(image: Tensor, side: int = SIDE) -> Tensor:
    """The crops of an image that do not overlap, row by row from its upper left corner.

    Args:
        image: (C, H, W).
        side: of a crop in pixels; what is left over on the right and below is not used.

    Returns:
        (N, C, side, side).
    """
    tiles = image.unfold(1, side, side).unfold(2, side, side)
    return tiles.permute(1, 2, 0, 3, 4).reshape(-1, len(image), side, side)


def bicubic(image: Tensor, factor: int = FACTOR) -> Tensor:
    """The baseline: an image to its size over ``factor`` and back, the former antialiased.

    Args:
        image: (C, H, W) in [0, 1], with sides that are multiples of ``factor``.
        factor: 4 keeps as many numbers as three channels at a quarter of each side do.

    Returns:
        (C, H, W) in [0, 1].
    """
    small = (image.shape[1] // factor, image.shape[2] // factor)
    return cubic(smooth_cubic(image, small), (image.shape[1], image.shape[2])).clamp(0, 1)


@dataclass(frozen=True)
class Recolour:
    """Red, green and blue exchanged, with a chance: few photographs show few colours.

    Args:
        chance: in [0, 1], of any of the six orders alike.
    """

    chance: float = 0.5

    def __call__(self, record: Record, seed: int) -> Record:
        """The record with its ``target`` recoloured; other images of a record would not follow."""
        draws = Draws(seed, "recolour")
        order = draws.order(3)
        return {**record, "target": record["target"][order]} if draws.chance(self.chance) else record
