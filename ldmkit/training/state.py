"""The state of a run on disk: folders that are complete under their name or not there at all.

``step-00001000`` holds every trained weight, buffer, average and moment as ``torch.distributed.checkpoint`` writes
them, so that another number of processes can read them, and ``run.json`` with all other numbers. It is written as
``step-00001000.partial``, and renamed when all processes have written and the disk has it.

The index that ``torch.distributed.checkpoint`` writes is a pickle: go on only from folders of your own, and give others
the exported file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ldmkit.errors import CheckpointError
from ldmkit.training.ema import EMA
from ldmkit.training.parallel import agree, barrier, rank
from ldmkit.training.power_ema import PowerEMA
from ldmkit.weights.atomic import sync_folder, synced

COMPLETE = re.compile(r"step-\d{8,}")
RECORD = "run.json"


class Learner:
    """What one phase has learned: its module, the optimizer of its trained weights, and their averages.

    Args:
        name: of the phase.
        module: unwrapped, with its weights as they will stay (sharded before).
        optimizer: of the parameters that require gradients.
        ema: None: no averages.
        power: averages by power profiles; None: none.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: EMA | None,
        power: PowerEMA | None = None,
    ) -> None:
        self.name = name
        self.module = module
        self.optimizer = optimizer
        self.ema = ema
        self.power = power

    def weights(self) -> dict[str, nn.Parameter]:
        """The trained parameters."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that are saved."""
        kept = self.module.state_dict(keep_vars=True)
        return {name: buffer for name, buffer in self.module.named_buffers() if name in kept}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs, under names that belong to it whoever holds it."""
        found = {f"{self.name}/weight/{name}": p.detach() for name, p in self.weights().items()}
        found |= {f"{self.name}/buffer/{name}": buffer for name, buffer in self.buffers().items()}
        if self.ema is not None:
            found |= {f"{self.name}/average/{name}": average for name, average in self.ema.average.items()}
        if self.power is not None:
            found |= {f"{self.name}/profile/{name}": average for name, average in self.power.named()}
        for name, p in self.weights().items():
            for key, value in self.optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    found[f"{self.name}/optimizer/{name}/{key}"] = value
                elif value is not None:
                    raise TypeError(
                        f"{type(self.optimizer).__name__} keeps {key}={value!r:.40} of a weight, and a run can only "
                        "save tensors: choose an optimizer whose state is tensors"
                    )
        return found

    def moments_like(self, sizes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """Empty tensors for the optimizer's state that a folder holds, placed as the weights are."""
        moments = {}
        for name, p in self.weights().items():
            prefix = f"{self.name}/optimizer/{name}/"
            for key, (size, dtype) in sizes.items():
                if key.startswith(prefix) and "/" not in key.removeprefix(prefix):
                    like = torch.zeros_like(p, dtype=dtype) if size == p.shape else torch.zeros(size, dtype=dtype)
                    moments[key] = like.detach()
        return moments

    def accept(self, moments: Mapping[str, Tensor]) -> None:
        """Give the optimizer its state back."""
        packed = self.optimizer.state_dict()
        names = {id(p): name for name, p in self.weights().items()}
        pairs = zip(self.optimizer.param_groups, packed["param_groups"], strict=True)
        numbers = {names[id(p)]: i for group, row in pairs for p, i in zip(group["params"], row["params"], strict=True)}
        state: dict[int, dict[str, Tensor]] = {}
        for name, number in numbers.items():
            prefix = f"{self.name}/optimizer/{name}/"
            own = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
            state |= {number: own} if own else {}
        self.optimizer.load_state_dict({"state": state, "param_groups": packed["param_groups"]})


def newest(out: Path) -> Path | None:
    """The complete folder of the latest step."""
    found = [folder for folder in out.glob("step-*") if COMPLETE.fullmatch(folder.name)]
    return max(found, key=step_of, default=None)


def step_of(folder: Path) -> int:
    """How many steps a folder's run had done."""
    return int(folder.name.removeprefix("step-"))


def sweep(out: Path) -> None:
    """Remove older states, and what was half written or half removed."""
    last = newest(out)
    for folder in out.glob("step-*"):
        if COMPLETE.fullmatch(folder.name) and folder != last:
            os.replace(folder, folder.with_name(f"{folder.name}.partial"))  # nobody may meet it half removed
    for left in out.glob("step-*.partial"):
        shutil.rmtree(left)


def save(out: Path, step: int, learners: Sequence[Learner], record: Mapping[str, Any]) -> Path:
    """Write the state after ``step`` steps and remove older ones; every process calls it.

    Args:
        out: the run's folder.
        step: steps done.
        learners: one per phase.
        record: plain data, the same in every process.

    Raises:
        OSError: the disk is full, or the folder is read-only; the older state is left as it was.
    """
    folder = out / f"step-{step:08d}"
    partial = folder.with_name(f"{folder.name}.partial")
    if rank() == 0:
        sweep(out)
        partial.mkdir()
    barrier()
    for learner in learners:
        agree([buffer for _, buffer in sorted(learner.buffers().items())])
    tensors = {key: value for learner in learners for key, value in learner.tensors().items()}
    _quietly(state_dict_saver.save, tensors, storage_writer=FileSystemWriter(partial))
    if rank() == 0:
        counts = {learner.name: learner.ema.updates for learner in learners if learner.ema is not None}
        tracked = {learner.name: learner.power.updates for learner in learners if learner.power is not None}
        with (partial / RECORD).open("xb") as file:
            file.write(json.dumps({**record, "updates": counts, "tracked": tracked}).encode())
            synced(file)
        sync_folder(partial)
        os.replace(partial, folder)
        sync_folder(out)
        sweep(out)
    barrier()
    return folder


def restore(folder: Path, learners: Sequence[Learner]) -> None:
    """Fill the learners with what a folder holds; every process calls it.

    Raises:
        CheckpointError: the folder is of other weights, or damaged.
    """
    reader = FileSystemReader(folder)
    sizes = _sizes(reader, folder)
    wanted = {
        key: value for learner in learners for key, value in learner.tensors().items() if "/optimizer/" not in key
    }
    _check_same(folder, wanted, {key: size for key, size in sizes.items() if "/optimizer/" not in key})
    moments = {key: value for learner in learners for key, value in learner.moments_like(sizes).items()}
    _quietly(state_dict_loader.load, {**wanted, **moments}, storage_reader=reader)
    said = read_record(folder)
    for learner in learners:
        learner.accept(moments)
        if learner.ema is not None:
            learner.ema.updates = said["updates"][learner.name]
        if learner.power is not None:
            learner.power.updates = said["tracked"][learner.name]


def read_record(folder: Path) -> dict[str, Any]:
    """The plain data of a folder."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    return record


def _sizes(reader: FileSystemReader, folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    try:
        found = reader.read_metadata().state_dict_metadata
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read ({error}): remove it, and the run starts again") from error
    return {
        key: (entry.size, entry.properties.dtype)
        for key, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _check_same(
    folder: Path, wanted: Mapping[str, Tensor], sizes: Mapping[str, tuple[torch.Size, torch.dtype]]
) -> None:
    have = {key: tuple(value.shape) for key, value in wanted.items()}
    held = {key: tuple(size) for key, (size, _) in sizes.items()}
    different = sorted(key for key in have.keys() | held.keys() if have.get(key) != held.get(key))
    if different:
        raise CheckpointError(
            f"{folder} is of another model or another choice of what is trained: {len(different)} tensors differ, such "
            f"as {different[:3]}; give the run another folder, or compose the model as before"
        )


def _quietly(call: Callable[..., object], tensors: Mapping[str, Tensor], **where: object) -> None:
    """Without the warning that there is one process, which is as meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        call(dict(tensors), no_dist=not distributed.is_initialized(), **where)
