r"""Low-rank adapters on linear maps and convolutions.

.. math:: W' = W + \frac{a}{r} \, U D, \qquad U \in \mathbb{R}^{out \times r}, \quad D \in \mathbb{R}^{r \times in}

An adapter is a parametrisation of a layer's weight: whoever reads ``layer.weight`` reads W', the bound network of a
sampling run included, and the layer itself stays what it is. U starts at zero, so that an adapted model begins as the
model it adapts. An adapter is saved apart, as one small file; :func:`merge` writes it into the weights.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ldmkit.errors import CheckpointError
from ldmkit.model import LatentDiffusion
from ldmkit.weights.native import write_atomically

KEY = "ldmkit_lora"


class LowRank(nn.Module):
    """What is added to one weight.

    Args:
        weight: (out, ...), whose shape and device it takes.
        rank: r.
        alpha: a.
        generator: draws D, uniform with variance 1 / (3 in) as a linear map's own weights.

    Source: Hu et al. 2021, section 4.1.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        inputs = weight[0].numel()
        down = (torch.rand(rank, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        self.strength = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, of the shape and dtype of the given one."""
        return weight + (self.strength * (self.up @ self.down)).view_as(weight).to(weight.dtype)


@dataclass(frozen=True)
class Adapter:
    """Where a model is adapted, and how.

    Args:
        layers: names of the adapted layers.
        rank: r, at least 1.
        alpha: a; the strength is a / r.
    """

    layers: tuple[str, ...]
    rank: int
    alpha: float


def adapt(
    model: nn.Module, targets: Sequence[str], rank: int = 8, alpha: float | None = None, seed: int = 0
) -> Adapter:
    """Put an adapter on the layers whose names fit a target, and freeze everything else.

    Args:
        model: a model, or a part of one.
        targets: shell patterns of layers' names, such as ``*.attn2.to_*``.
        rank: r.
        alpha: a; None: r, a strength of 1.
        seed: of the first values of D.

    Raises:
        ValueError: a rank below 1; a target that fits no linear map or convolution; a layer that is adapted already.
    """
    if rank < 1:
        raise ValueError(f"an adapter needs a rank of at least 1, got {rank}")
    layers = _layers(model, targets)
    adapter = Adapter(tuple(layers), rank, float(rank if alpha is None else alpha))
    model.requires_grad_(False)
    _attach(layers, adapter, torch.Generator().manual_seed(seed))
    return adapter


def save_adapter(model: LatentDiffusion, adapter: Adapter, path: str | os.PathLike[str]) -> None:
    """Write the adapter alone as one safetensors file, which names the composition it belongs to.

    Raises:
        ValueError: the model does not have this adapter.
        OSError: the file cannot be written; an old file is left as it was.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in _factors(model, adapter).items()}
    record = {**asdict(adapter), "base": _fingerprint(model, adapter)}
    write_atomically(Path(path), lambda partial: save_file(tensors, partial, {"format": "pt", KEY: json.dumps(record)}))


def load_adapter(model: LatentDiffusion, path: str | os.PathLike[str]) -> Adapter:
    """Put the adapter of a file on a model, ready to sample and frozen as it was read.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not an adapter, damaged, or made for layers that this model does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    adapter, base, tensors = _read(path)
    modules = dict(model.named_modules())
    layers = {name: modules[name] for name in adapter.layers if isinstance(modules.get(name), nn.Linear | nn.Conv2d)}
    if len(layers) != len(adapter.layers) or base != _shapes(layers):
        absent = [name for name in adapter.layers if name not in layers] or sorted(set(base) ^ set(_shapes(layers)))
        raise CheckpointError(
            f"the adapter in {path} was made for another model: it adapts {len(adapter.layers)} layers, of which "
            f"{absent[:3] or 'some'} are missing or of another shape here"
        )
    if adapted := [name for name, layer in layers.items() if parametrize.is_parametrized(layer)]:
        raise CheckpointError(f"{adapted[:3]} have an adapter already: merge it or take it off first")
    _attach(layers, adapter, torch.Generator())
    factors = _factors(model, adapter)
    wrong = sorted(name for name in factors.keys() | tensors.keys() if _shape(factors, name) != _shape(tensors, name))
    if wrong or not all(bool(value.isfinite().all()) for value in tensors.values()):
        take_off(model, adapter)
        raise CheckpointError(f"the tensors of {path} do not fit its own record: {wrong[:3] or 'not all are finite'}")
    with torch.no_grad():
        for name, value in factors.items():
            value.copy_(tensors[name])
            value.requires_grad_(False)
    return adapter


def merge(model: nn.Module, adapter: Adapter) -> None:
    """Write the adapter into the weights: the model is plain again, makes the same images, and can be saved."""
    _remove(model, adapter, keep=True)


def take_off(model: nn.Module, adapter: Adapter) -> None:
    """Remove the adapter: the model is what it was before."""
    _remove(model, adapter, keep=False)


def _remove(model: nn.Module, adapter: Adapter, keep: bool) -> None:
    for name in adapter.layers:
        layer = model.get_submodule(name)
        if not parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"layer '{name}' has no adapter")
        if keep:
            # The sum is written in place: leave_parametrized would replace the parameter that an optimizer may hold.
            with torch.no_grad():
                weight = cast(Tensor, layer.weight).detach().clone()
                layer.get_parameter("parametrizations.weight.original").copy_(weight)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _layers(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    kinds = nn.Linear | nn.Conv2d
    layers: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    for target in targets:
        if not any(fnmatchcase(name, target) for name in layers):
            near = ", ".join(list(layers)[:3])
            raise ValueError(f"no linear map or convolution fits {target!r}; there are {near}, ...")
    chosen = {name: layer for name, layer in layers.items() if any(fnmatchcase(name, t) for t in targets)}
    if adapted := [name for name, layer in chosen.items() if parametrize.is_parametrized(layer)]:
        raise ValueError(f"{adapted[:3]} have an adapter already: merge it or take it off first")
    return chosen


def _attach(layers: Mapping[str, nn.Module], adapter: Adapter, generator: torch.Generator) -> None:
    for layer in layers.values():
        low_rank = LowRank(cast(Tensor, layer.weight), adapter.rank, adapter.alpha, generator)
        parametrize.register_parametrization(layer, "weight", low_rank)


def _factors(model: nn.Module, adapter: Adapter) -> dict[str, nn.Parameter]:
    factors = {}
    for name in adapter.layers:
        layer = model.get_submodule(name)
        if not parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"layer '{name}' has no adapter")
        for factor, value in layer.get_submodule("parametrizations.weight.0").named_parameters():
            factors[f"{name}.{factor}"] = value
    return factors


def _fingerprint(model: nn.Module, adapter: Adapter) -> dict[str, list[int]]:
    return _shapes({name: model.get_submodule(name) for name in adapter.layers})


def _shapes(layers: Mapping[str, nn.Module]) -> dict[str, list[int]]:
    return {name: list(cast(Tensor, layer.weight).shape) for name, layer in layers.items()}


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _read(path: Path) -> tuple[Adapter, dict[str, list[int]], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable adapter: {error}") from error
    match record:
        case {"layers": list(layers), "rank": int(rank), "alpha": float(alpha), "base": dict(base)} if rank > 0:
            return Adapter(tuple(map(str, layers)), rank, alpha), base, tensors
    raise CheckpointError(f"{path} is a safetensors file, and not an adapter that ldmkit saved")
