"""One process or many: what the loop needs of ``torch.distributed``, and nothing that starts processes.

``torchrun`` (or ``accelerate launch``) starts them and says in the environment who is who; :func:`process_group` joins
them. How a module is spread over them is a :class:`Spreading`: :func:`replicated` or :class:`Sharded`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any, Protocol, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that a launcher started; alone, or inside another such block, do nothing.

    A block that raises leaves without a word to the others: they may be inside an operation that this process will
    never join, and the launcher ends them when it sees this one end.
    """
    if distributed.is_initialized() or "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, me, count = next(rendezvous("env://"))
    turn = store.add(f"ldmkit/{me}", 1)  # a second group may not read what the first left in the launcher's store
    distributed.init_process_group(backend, store=PrefixStore(f"ldmkit/{turn}", store), rank=me, world_size=count)
    yield
    distributed.barrier()
    distributed.destroy_process_group()


def local_device() -> torch.device:
    """The GPU that the launcher meant for this process, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def rank() -> int:
    """The number of this process, 0 alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if distributed.is_initialized():
        distributed.barrier()


def summed(values: Tensor) -> list[float]:
    """The sum of a vector over all processes: the same numbers in each."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    numbers: list[float] = values.tolist()
    return numbers


def gathered(value: Any) -> list[Any]:  # noqa: ANN401 - any picklable value
    """The value of every process, in order."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def agree(tensors: Sequence[Tensor]) -> None:
    """Give every process the tensors of the first."""
    if distributed.is_initialized():
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


class Spreading(Protocol):
    """A module as it runs on this process."""

    def __call__(self, batch: dict[str, Any], seeds: Sequence[int], step: int) -> Tensor:
        """What the module gives."""

    def summing(self, last: bool) -> AbstractContextManager[None]:
        """A forward and its backward inside; gradients are averaged over processes after the last one only."""

    def whole(self) -> AbstractContextManager[None]:
        """Every process holds all weights inside, as plain tensors; where a module is run, all of them run it."""

    def settle(self) -> None:
        """Leave all weights in every process as plain tensors, for good: training is over."""


Spread = Callable[[nn.Module], Spreading]
"""How a module is spread over the processes there are."""


def replicated(module: nn.Module) -> Spreading:
    """Every process holds the whole module (``DistributedDataParallel``)."""
    return Alone(module) if not distributed.is_initialized() else Replica(module)


class Alone:
    """A module in the only process."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, batch: dict[str, Any], seeds: Sequence[int], step: int) -> Tensor:
        loss: Tensor = self.module(batch, seeds, step)
        return loss

    def summing(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def settle(self) -> None:
        return


class Replica:
    """A module of which each process has a copy."""

    def __init__(self, module: nn.Module) -> None:
        device = next(module.parameters()).device
        self.module = DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)

    def __call__(self, batch: dict[str, Any], seeds: Sequence[int], step: int) -> Tensor:
        loss: Tensor = self.module(batch, seeds, step)
        return loss

    def summing(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self.module.no_sync()

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def settle(self) -> None:
        return


class Sharded:
    """Every process holds a share of each trained weight, of its gradient, average and moments (``fully_shard``).

    Args:
        units: names of submodules whose weights are gathered when they run and let go after, each part of a name
            between dots a shell pattern: ``"model.denoiser.backbone.output_blocks.*.*"``. All other weights are
            gathered for the whole step. A unit's weights are read by itself, when it is called.
        methods: what else of a unit is called and reads its weights; units without such a method are as well.
            The default is what ``unet`` asks of its residual blocks and transformers.

    Raises:
        ValueError: when it is used: a pattern that fits no submodule, or one that is never called, such as a list.
    """

    def __init__(self, *units: str, methods: Sequence[str] = ("project", "read")) -> None:
        self.units = units
        self.methods = methods

    def __call__(self, module: nn.Module) -> Spreading:
        """The module in shards, or as it is where there is one process."""
        names = {name: unit for name, unit in module.named_modules() if name}
        for pattern in self.units:
            if not any(_fits(name, pattern) for name in names):
                raise ValueError(f"no submodule fits {pattern!r}; there are {list(names)[:3]} ...")
        chosen = {name: unit for name, unit in names.items() if any(_fits(name, pattern) for pattern in self.units)}
        for name, unit in chosen.items():
            if isinstance(unit, nn.ModuleList | nn.ModuleDict):
                raise ValueError(f"unit {name!r} is a {type(unit).__name__}, which is never called: name '{name}.*'")
        if not distributed.is_initialized():
            return Alone(module)
        agree([*module.parameters(), *module.buffers()])
        return Shards(module, list(chosen.values()), self.methods)


def _fits(name: str, pattern: str) -> bool:
    """Whether each part of a dotted name fits the same part of a pattern."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _gathering(unit: nn.Module, method: str) -> None:
    """Let a method of a unit gather the unit's weights, as its call does."""
    register_fsdp_forward_method(unit, method)
    gathering = getattr(unit, method)

    def quietly(*given: object, **named: object) -> object:
        with warnings.catch_warnings():  # views are not written to here, of which torch warns
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            return gathering(*given, **named)

    setattr(unit, method, quietly)


class Shards:
    """A module whose weights are shared out."""

    def __init__(self, module: nn.Module, units: Sequence[nn.Module], methods: Sequence[str]) -> None:
        frozen = {p for p in module.parameters() if not p.requires_grad}
        for unit in reversed(units):  # what is inside comes first
            fully_shard(unit, ignored_params=frozen & set(unit.parameters()))
            for method in methods:
                if callable(getattr(unit, method, None)):
                    _gathering(unit, method)
        self.units = [unit for unit in units if isinstance(unit, FSDPModule)]
        self.methods = methods
        self.module = module
        self.root = fully_shard(module, ignored_params=frozen, reshard_after_forward=False)

    def __call__(self, batch: dict[str, Any], seeds: Sequence[int], step: int) -> Tensor:
        try:
            loss: Tensor = self.module(batch, seeds, step)
        except RuntimeError as error:
            if self.units and "DTensor" in str(error):
                error.add_note(
                    "The weights of a unit of Sharded(...) were read while they were shared out: by another module, or "
                    "by a method of the unit that is not its call. Name that method with Sharded(..., methods=[...]), "
                    "or take the unit out"
                )
            raise
        return loss

    @contextmanager
    def summing(self, last: bool) -> Iterator[None]:
        self.root.set_requires_gradient_sync(last)
        yield

    @contextmanager
    def whole(self) -> Iterator[None]:
        parts = [*self.units, self.root]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
        for part in parts:
            part.reshard()
        for unit in self.units:
            unit.set_reshard_after_forward(True, recurse=False)

    def settle(self) -> None:
        for part in [*self.units, self.root]:
            part.reshard()
            self._release(part)
        whole: dict[int, nn.Parameter] = {}
        for name, weight in list(self.module.named_parameters(remove_duplicate=False)):
            if isinstance(weight, DTensor):
                if id(weight) not in whole:
                    whole[id(weight)] = nn.Parameter(cast(DTensor, weight.detach()).full_tensor())
                owner, _, leaf = name.rpartition(".")
                setattr(self.module.get_submodule(owner), leaf, whole[id(weight)])

    def _release(self, part: FSDPModule) -> None:
        """Undo ``fully_shard``, for which torch has no call: left alone, a process that calls it waits for others."""
        state = part._get_fsdp_state()
        state._pre_forward_hook_handle.remove()
        state._post_forward_hook_handle.remove()
        for method in self.methods:
            vars(part).pop(method, None)
        part.__class__ = type(part).__bases__[1]  # a class of its own for each, (FSDPModule, the module's)
