"""How a component of each kind is used: inputs made of what it declares, and all that it gives for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldmkit.composition import FirstStage
from ldmkit.conditioning import Conditioner, Conditioning, MayLackNull
from ldmkit.denoiser import Backbone, Denoise
from ldmkit.guidance import Guidance
from ldmkit.noise import Noise
from ldmkit.parts import Recipe
from ldmkit.process import VP, Level, Levels, Process
from ldmkit.samplers import Checking, Sampler, reverse
from ldmkit.tasks.contract import Task
from ldmkit.testing.gaussian import Gaussian
from ldmkit.testing.values import Inputs

TOKENS = 5
"""L of the context that a backbone is given."""

DATA = Gaussian(mean=0.4, std=0.6)
"""The distribution on which samplers are tested."""


@dataclass(frozen=True)
class Use:
    """How components of one kind are used.

    Args:
        inputs: (component, number of samples) -> what it is given where the example does not say.
        outputs: (component, inputs) -> all that it gives, by name.
        protocol: what it is.
    """

    inputs: Callable[[Any, int], Inputs]
    outputs: Callable[[Any, Inputs], Mapping[str, Any]]
    protocol: type


def _images(stage: FirstStage, count: int) -> Inputs:
    """Images that are not square, noise for their latents, and latents."""
    cells = (count, stage.channels, 4, 2)
    return {
        "image": torch.rand(count, stage.image_channels, 4 * stage.factor, 2 * stage.factor) * 2 - 1,
        "noise": torch.randn(cells),
        "z": torch.randn(cells),
    }


def _coded(stage: FirstStage, inputs: Inputs) -> Mapping[str, Any]:
    image, noise, z = inputs["image"], inputs["noise"], inputs["z"]
    return {"z": stage.encode(image), "drawn z": stage.encode(image, noise), "image": stage.decode(z)}


def _state(backbone: Backbone, count: int) -> Inputs:
    """A state that is not square with its concat channels, fractional times, and every slot that is read."""
    accepts = backbone.accepts
    made: dict[str, Tensor] = {
        "x": torch.randn(
            count, backbone.channels + accepts.get("concat", 0), 4 * backbone.multiple, 2 * backbone.multiple
        ),
        "t": torch.linspace(900.5, 10.25, count),
    }
    if "context" in accepts:
        made["context"] = torch.randn(count, TOKENS, accepts["context"])
        made["context_mask"] = torch.arange(TOKENS) < torch.arange(TOKENS, TOKENS - count, -1).clamp(min=1)[:, None]
    if "vector" in accepts:
        made["vector"] = torch.randn(count, accepts["vector"])
    if "label" in accepts:
        made["label"] = torch.arange(count) % accepts["label"]
    return made


def _predicted(backbone: Backbone, inputs: Inputs) -> Mapping[str, Any]:
    return {"prediction": backbone(**inputs)}


def _conditioned(conditioner: Conditioner, inputs: Inputs) -> Mapping[str, Any]:
    given = {"cond": _without_padding(conditioner(inputs))}
    return {**given, "null": _without_padding(conditioner.null(inputs))} if has_null(conditioner) else given


def has_null(conditioner: object) -> bool:
    """Whether a conditioner has a null, which it has unless it says otherwise."""
    return not isinstance(conditioner, MayLackNull) or conditioner.has_null


def _without_padding(cond: Conditioning) -> Conditioning:
    """Zeros in place of tokens that nobody attends to."""
    if cond.context is None or cond.context_mask is None:
        return cond
    return replace(cond, context=cond.context.masked_fill(~cond.context_mask[..., None], 0))


def _none(component: object, count: int) -> Inputs:
    return {}


def _quantiles(process: Process, count: int) -> Inputs:
    return {"u": torch.rand(count)}


def _drawn(process: Process, inputs: Inputs) -> Mapping[str, Any]:
    t = process.draw(inputs["u"])
    level = process.level(t)
    return {"t": t, "alpha": level.alpha, "sigma": level.sigma}


def _start(sampler: Sampler, count: int) -> Inputs:
    return {"x": torch.randn(count, 1, 4, 4, dtype=torch.float64), "seeds": list(range(count))}


def way(sampler: Sampler, falling: Levels) -> Levels:
    """The levels, last to first for a sampler that refuses falling levels and takes rising ones: an inversion."""
    rising = reverse(falling)
    return rising if _refuses(sampler, falling) and not _refuses(sampler, rising) else falling


def _refuses(sampler: Sampler, levels: Levels) -> bool:
    if not isinstance(sampler, Checking):
        return False
    try:
        sampler.check(levels)
    except ValueError:
        return True
    return False


def _sampled(sampler: Sampler, inputs: Inputs) -> Mapping[str, Any]:
    levels = way(sampler, VP().levels(5))
    return {"x": sampler(DATA.denoise, inputs["x"], levels, Noise(tuple(inputs["seeds"])))}


def bind(cond: Conditioning) -> Denoise:
    """A network for guidance to guide: an estimate of x0 that moves with the state and with ``cond.vector`` (B, C)."""

    def denoise(x: Tensor, level: Level[float]) -> Tensor:
        if cond.vector is None or cond.vector.shape[0] != x.shape[0]:
            raise ValueError(f"bound to a vector of {cond.batch_size} samples and called with {x.shape[0]}")
        return 0.5 * level.alpha * x + level.sigma * cond.vector[:, :, None, None].to(x.dtype).tanh()

    return denoise


def _pair(guidance: Guidance, count: int) -> Inputs:
    return {
        "x": torch.randn(count, 3, 8, 8),
        "cond": Conditioning(vector=torch.randn(count, 3)),
        "uncond": Conditioning(vector=torch.randn(1, 3).repeat(count, 1)),
    }


def _guided(guidance: Guidance, inputs: Inputs) -> Mapping[str, Any]:
    levels = VP().levels(3)
    denoise = guidance(bind, inputs["cond"], inputs["uncond"], levels)
    return {"x0": denoise(inputs["x"], levels.start)}


def _prepared(task: Task, inputs: Inputs) -> Mapping[str, Any]:
    return task.prepare(inputs)


def _written(recipe: Recipe, inputs: Inputs) -> Mapping[str, Any]:
    return recipe.to_json()


USES: dict[str, Use] = {
    "first-stage": Use(_images, _coded, FirstStage),
    "backbone": Use(_state, _predicted, Backbone),
    "conditioner": Use(_none, _conditioned, Conditioner),
    "process": Use(_quantiles, _drawn, Process),
    "sampler": Use(_start, _sampled, Sampler),
    "guidance": Use(_pair, _guided, Guidance),
    "task": Use(_none, _prepared, Task),
    "recipe": Use(_none, _written, Recipe),
}
