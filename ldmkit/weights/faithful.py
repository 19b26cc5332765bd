"""Whether a model is what its recipe builds: a file holds the recipe and the tensors, and nothing else.

Wrappers that change how a module runs and not what it computes are looked through by name: ``torch.compile``,
``DistributedDataParallel``, ``FullyShardedDataParallel``, activation checkpointing. Everything else that the recipe
does not say is a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldmkit.composition import FirstStage, recipe_of
from ldmkit.conditioning import Conditioner, Joint
from ldmkit.denoiser import Backbone
from ldmkit.model import LatentDiffusion
from ldmkit.parts import Recipe
from ldmkit.weights.skeleton import is_data

WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
"""Class of torch -> the name under which it holds what it wraps."""


def bare(module: nn.Module) -> nn.Module:
    """A module without the wrappers around it."""
    while inner := _inner(module):
        module = module.get_submodule(inner)
    return module


def recipe_of_bare(model: LatentDiffusion) -> Recipe:
    """The recipe of a model whose parts may be wrapped.

    Raises:
        CompositionError: a part cannot be written down.
    """
    joint = model.conditioner
    if joint is not None:
        sources = {name: cast(Conditioner, bare(source)) for name, source in joint.sources.items()}
        joint = Joint(sources, joint.drop, joint.guided)
    first_stage, backbone = bare(model.first_stage), bare(cast(nn.Module, model.backbone))
    parts = (cast(FirstStage, first_stage), cast(Backbone, backbone), model.process, model.denoiser.prediction, joint)
    return recipe_of(*parts, model.objective)


def plain_names(model: nn.Module) -> dict[str, str]:
    """Name of a module or tensor -> its name without wrappers, where that is another one."""
    modules = dict(model.named_modules(remove_duplicate=False))
    wrapped = [".".join(filter(None, [name, inner])) for name, module in modules.items() if (inner := _inner(module))]
    if not wrapped:
        return {}
    wrapped.sort(key=len, reverse=True)  # the innermost first: then the outer names are still right
    return {name: _without(name, wrapped) for name in (*modules, *model.state_dict(keep_vars=True))}


def differences(model: LatentDiffusion, again: LatentDiffusion) -> list[str]:
    """What a model is and its rebuilt self is not, a line each; empty where a file can hold it."""
    plain = plain_names(model)
    state = {plain.get(name, name): value for name, value in model.state_dict(keep_vars=True).items()}
    ours = {
        plain.get(name, name): module
        for name, module in model.named_modules(remove_duplicate=False)
        if not _inner(module)
    }
    theirs = dict(again.named_modules(remove_duplicate=False))
    return [
        *_of_tensors(state, again.state_dict(keep_vars=True)),
        *_of_unsaved(ours, state),
        *(line for name in ours.keys() & theirs.keys() for line in _of_modules(name, ours[name], theirs[name])),
        *(f"{name} is there and is not rebuilt" for name in ours.keys() - theirs.keys()),
        *(f"{name} is rebuilt and is not there" for name in theirs.keys() - ours.keys()),
    ]


def unsaved_buffers(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The buffers that are computed when a part is built, and are in no file."""
    return {
        ".".join(filter(None, [name, key])): value
        for name, module in modules.items()
        for key, value in module._buffers.items()
        if value is not None and key in module._non_persistent_buffers_set
    }


def _inner(module: nn.Module) -> str:
    """Under which name a wrapper holds what it wraps; empty for everything else."""
    cls = type(module)
    return WRAPPERS.get(cls.__name__, "") if cls.__module__.partition(".")[0] == "torch" else ""


def _without(name: str, wrapped: list[str]) -> str:
    for prefix in wrapped:
        if name == prefix or name.startswith(f"{prefix}."):
            name = ".".join(filter(None, [prefix.rpartition(".")[0], name[len(prefix) + 1 :]]))
    return name


def _of_tensors(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {_shape(name, ours)}, rebuilt {_shape(name, theirs)}"
        for name in sorted(ours.keys() | theirs.keys())
        if _shape(name, ours) != _shape(name, theirs)
    ]


def _shape(name: str, state: Mapping[str, Any]) -> str:
    if name not in state:
        return "absent"
    value = state[name]
    if not isinstance(value, Tensor):
        return f"{type(value).__name__}, which is no tensor"
    return "data" if is_data(name) else str(tuple(value.shape))


def _of_unsaved(modules: Mapping[str, nn.Module], state: Mapping[str, Any]) -> list[str]:
    kept = {id(value) for value in state.values()}
    return [
        f"{'.'.join(filter(None, [name, key]))} is a parameter that its state_dict() leaves out"
        for name, module in modules.items()
        for key, value in module._parameters.items()
        if value is not None and id(value) not in kept
    ]


def _of_modules(name: str, ours: nn.Module, theirs: nn.Module) -> Iterator[str]:
    """How two modules differ beside their stored tensors."""
    cls = _plain_class(ours)
    if cls is not type(theirs):
        yield f"{name} is {cls.__qualname__}, rebuilt {type(theirs).__qualname__}"
        return
    if "forward" in vars(ours) and "forward" not in vars(theirs):
        yield f"{name} has its forward replaced"
    if cls is type(ours) and _hooks(ours) != _hooks(theirs):
        yield f"{name} has {_hooks(ours)} hooks around its forward, rebuilt {_hooks(theirs)}: remove them"
    if cls.__module__.startswith(("torch.nn.", "ldmkit.")):
        # The layers of others may count what they do; these never change a number as they run.
        for key, value in _numbers(theirs).items():
            if repr(_numbers(ours).get(key)) != repr(value):
                yield f"{name}.{key} is {_numbers(ours).get(key)}, rebuilt {value}"
    built = unsaved_buffers({name: theirs})
    for key, value in unsaved_buffers({name: ours}).items():
        other = built.get(key)
        if other is None or not _equal(value, other):
            yield f"buffer {key} is in no file, and has other values when it is rebuilt"


def _plain_class(module: nn.Module) -> type:
    """The class that the module had before ``fully_shard`` mixed another one in."""
    cls = type(module)
    return cls.__bases__[1] if cls.__bases__[0].__name__ == "FSDPModule" else cls


def _hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def _numbers(module: nn.Module) -> dict[str, object]:
    return {key: value for key, value in vars(module).items() if type(value) in (int, float) and key[0] != "_"}


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.is_meta:
        return False
    here = ours.detach().cpu()
    return torch.equal(here.nan_to_num(), theirs.to(here.dtype).nan_to_num())
