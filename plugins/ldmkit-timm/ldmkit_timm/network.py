"""timm's networks without their classifiers, and what they read of an image.

A network is a name of timm's own table (``resnet50.a1_in1k``; the part behind the dot names published weights) with
``arguments``, keywords of its constructor in timm's words. Its weights come from a file or a hub id, under timm's own
rules for names and heads; every tensor of the file must find its place before the classifier is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import timm
import torch
from ldmkit import CheckpointError
from torch import Tensor, nn
from torch.nn import functional as F

Statistics = tuple[float, ...]


@runtime_checkable
class FeatureMaps(Protocol):
    """A network of timm that hands out its feature maps, as most do."""

    feature_info: list[dict[str, Any]]

    def forward_intermediates(self, x: Tensor) -> Any: ...  # noqa: ANN401
    def prune_intermediate_layers(self) -> Any: ...  # noqa: ANN401
    def reset_classifier(self, num_classes: int) -> None: ...


def network(name: str, arguments: Mapping[str, Any], source: str | None, owner: str) -> Any:  # noqa: ANN401
    """Build a network of timm and take its classifier off; timm's networks share no class.

    Args:
        name: of timm's table.
        arguments: keywords of the network's constructor.
        source: a file of weights or a hub id such as ``timm/resnet50.a1_in1k``; None: random weights.
        owner: the component's registered name, for messages.

    Raises:
        TypeError: ``source`` is not a string.
        ValueError: timm has no network of that name, or it does not hand out its features.
        CheckpointError: ``source`` does not hold the network's tensors.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise ValueError(f"'{owner}': timm has no network '{name}'; timm.list_models('*part*') searches its names")
    if source is not None and not isinstance(source, str):
        raise TypeError(f"'{owner}' takes source as a string, got {type(source).__name__}: pass str(path)")
    model = timm.create_model(name, **arguments) if source is None else _read(name, arguments, source, owner)
    if not isinstance(model, FeatureMaps):
        raise ValueError(f"'{owner}': timm's '{name}' does not hand out its features: choose another network")
    model.reset_classifier(0)
    return model


def _read(name: str, arguments: Mapping[str, Any], source: str, owner: str) -> nn.Module:
    is_file = Path(source).is_file()
    if not is_file and source.count("/") != 1:
        raise CheckpointError(f"'{owner}': '{source}' is neither a file nor a hub id (organisation/name)")
    place = {"file": source, "source": "file"} if is_file else {"hf_hub_id": source, "source": "hf-hub", "url": ""}
    # timm skips a classifier of another size without a word; told that the sizes agree, it accounts for every tensor.
    classes = {} if "num_classes" not in arguments else {"num_classes": arguments["num_classes"]}
    overlay = {**place, **classes}
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except RuntimeError as error:
        raise CheckpointError(f"'{owner}': '{source}' does not hold the weights of '{name}': {error}") from error
    return model


def reads(model: nn.Module, arguments: Mapping[str, Any]) -> tuple[tuple[int, int], Statistics, Statistics]:
    """((height, width), mean, standard deviation) of the images that a network was made for."""
    config = timm.data.resolve_model_data_config(model)
    size = arguments.get("img_size", config["input_size"][1:])
    height, width = (size, size) if isinstance(size, int) else size
    return (height, width), tuple(config["mean"]), tuple(config["std"])


def normalised(image: Tensor, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resize without cropping, and ``((image + 1) / 2 - mean) / std``.

    Args:
        image: (B, C, H, W) in [-1, 1].
        size: height and width.
        mean: per channel, of images in [0, 1].
        std: per channel.

    Returns:
        (B, C, *size), float32 at least.
    """
    precise = image.to(torch.promote_types(image.dtype, torch.float32))  # torch antialiases nothing shorter
    x = F.interpolate(precise, size=size, mode="bicubic", antialias=True)
    center, spread = (torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1) for values in (mean, std))
    return ((x + 1) / 2 - center) / spread
