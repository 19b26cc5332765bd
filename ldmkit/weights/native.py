"""Our own file: one safetensors file with the tensors and, in its metadata, the recipe. No code.

The metadata key ``ldmkit`` holds JSON: the recipe, who provides each part, the library's version, the names of tied
tensors and a hash of the content. Above a stated size there are several such files, each with the same record, and an
index. Writing is atomic; reading builds the parts by name without initialising weights that are then overwritten, and
accounts for every tensor before any is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ldmkit.errors import CompositionError
from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Recipe
from ldmkit.weights.atomic import write_atomically as write_atomically
from ldmkit.weights.faithful import bare, differences, plain_names, recipe_of_bare, unsaved_buffers
from ldmkit.weights.providers import check_provided, providers
from ldmkit.weights.record import Record
from ldmkit.weights.shards import SUFFIX, opened_model
from ldmkit.weights.skeleton import MAX_DATA, check_hash, is_data, restored
from ldmkit.weights.skeleton import without_initialisation as without_initialisation
from ldmkit.weights.tensor_file import NAMES, nbytes
from ldmkit.weights.written import is_spread, take_part, write_model

MAX_SHARD_BYTES = 10 * 10**9
"""Bytes of tensors in one file, unless another number is given."""


def save(
    model: LatentDiffusion,
    path: str | os.PathLike[str],
    notes: Mapping[str, Any] | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a model as one safetensors file with its recipe, or as shards with an index.

    What is written appears complete under its name or not at all, and replaces what was saved there before.

    Args:
        model: the model; its parts must be registered components. Modules wrapped by ``torch.compile`` or
            ``DistributedDataParallel`` are written as what they wrap. Where ``fully_shard`` has spread it over several
            processes, all of them must call; the first one writes, and is the last to return.
        path: where to write, as ``model.safetensors``.
        notes: plain data to keep with the recipe.
        max_shard_bytes: tensors of more bytes are written as several files ``model-HASH-00001-of-00002.safetensors``
            with the index ``model.safetensors.index.json``.

    Returns:
        What to load: ``path``, or the index of the shards.

    Raises:
        CompositionError: the model is not what its recipe builds; the message names the differences.
        ValueError: a weight is not finite, or the path is that of an index.
        OSError: it cannot be written; what was there before is still there.
    """
    path = Path(path)
    if path.name.endswith(SUFFIX):
        raise ValueError(f"{path} is the name of an index: give the model's own name, {path.name.removesuffix(SUFFIX)}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    model = cast(LatentDiffusion, bare(model))
    recipe = recipe_of_bare(model).with_notes(notes or {})
    casts = _check_rebuilds(model, recipe)
    tensors, tied = _tensors(model)
    plain = plain_names(model)
    parameters = {plain.get(name, name) for name, _ in model.named_parameters(remove_duplicate=False)}
    record = Record(recipe, providers(recipe), tied, casts)
    if any(map(is_spread, tensors.values())) and torch.distributed.get_rank():
        take_part(tensors, max_shard_bytes)
        return path
    return write_model(path, record, tensors, parameters, max_shard_bytes)


def load(
    path: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = False,
) -> LatentDiffusion:
    """Rebuild a model that :func:`save` wrote, in eval mode.

    Every name, shape and type is accounted for before a tensor is read, and every weight must be finite. The weights
    are read once, into the memory in which they stay, or one by one to the device.

    Args:
        path: the file, the index of its shards, or the name that was saved.
        device: where to put it.
        dtype: of the backbone and conditioners; None keeps what the file holds. The first stage keeps its own.
        verify: compare the content hash too; it takes longer than reading, and finds what :func:`verify` finds.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not a file of ours, damaged, incomplete, or its tensors do not match its recipe.
        UnknownComponentError: parts are not installed here; the message lists all of them and what to install.
    """
    path = Path(path)
    with opened_model(path) as saved:
        check_provided(saved.record.recipe, saved.record.providers)
        model = restored(saved, torch.device(device), check_content=verify).eval()
    return model if dtype is None else model.cast(dtype)


def verify(path: str | os.PathLike[str]) -> str:
    """Compare the content of a model's files, recipe and tensors, with the hash they carry; builds nothing.

    Args:
        path: the file, the index of its shards, or the name that was saved.

    Returns:
        The hash, 64 hexadecimal digits: two files with the same one hold the same model.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not a file of ours, damaged, incomplete, or too old to have a hash.
    """
    with opened_model(Path(path)) as saved:
        check_hash(saved, saved.digests() if saved.record.content else {})
        return saved.record.content


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe of a file of ours, with its notes; reads no tensor.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not a file of ours.
    """
    with opened_model(Path(path)) as saved:
        return saved.record.recipe


def _check_rebuilds(model: LatentDiffusion, recipe: Recipe) -> dict[str, str]:
    """Refuse a model that its own recipe, as a file would give it back, does not describe.

    Returns:
        Buffer that is in no file -> its type, where a cast of the model has changed that.
    """
    with without_initialisation():
        again = compose(Recipe.from_json(json.loads(json.dumps(recipe.to_json()))))
    if different := differences(model, again):
        some = "; ".join(different[:5])
        raise CompositionError(
            f"the model differs from what its recipe builds in {len(different)} places: {some}. A part was changed "
            "after it was built: build it with the options it should have, or merge the adapter"
        )
    built = unsaved_buffers(dict(again.named_modules()))
    plain = plain_names(model)
    ours = unsaved_buffers({plain.get(name, name): module for name, module in model.named_modules()})
    return {
        name: str(value.dtype).removeprefix("torch.")
        for name, value in ours.items()
        if value.dtype != built[name].dtype
    }


def _tensors(model: LatentDiffusion) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors to store, tied name -> stored name)."""
    plain = plain_names(model)
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    tied = {}
    for full, value in model.state_dict(keep_vars=True).items():
        name = plain.get(full, full)
        stored = first.setdefault(id(value), name)
        if stored != name:
            tied[name] = stored
            continue
        _check_storable(name, value)
        tensors[name] = value
    return tensors, tied


def _check_storable(name: str, value: Any) -> None:  # noqa: ANN401 - what a state dict holds
    if not isinstance(value, Tensor):
        raise CompositionError(f"{name} is {type(value).__name__}, and a file holds tensors only: give uint8 numbers")
    if value.is_meta:
        raise CompositionError(
            f"{name} is on 'meta' and has no values: load its weights, or undo the offloading, first"
        )
    if value.layout != torch.strided or value.dtype not in NAMES:
        raise CompositionError(f"{name} is {value.layout} of {value.dtype}, which a file cannot hold: make it dense")
    if is_data(name) and nbytes(value) > MAX_DATA:
        raise CompositionError(
            f"{name} holds {nbytes(value)} bytes of data, and at most {MAX_DATA} are read: keep large data in buffers"
        )
