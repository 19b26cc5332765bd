"""Our own file: one safetensors file with the tensors and, in its metadata, the recipe. No code.

The metadata key ``ldmkit`` holds JSON: the format's version, the recipe, who provides each part, the library's version,
and the names of tied tensors. Writing is atomic; reading builds the parts by name without initialising weights that
are then overwritten, and accounts for every tensor before any is copied.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldmkit._version import __version__
from ldmkit.errors import CheckpointError, CompositionError
from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Recipe
from ldmkit.registry import origin

FORMAT_VERSION = 1


def save(model: LatentDiffusion, path: str | os.PathLike[str], notes: Mapping[str, Any] | None = None) -> None:
    """Write a model as one safetensors file with its recipe.

    The file appears complete under its name or not at all.

    Args:
        model: the model; its parts must be registered components.
        path: where to write; an existing file is replaced at the end.
        notes: plain data to keep with the recipe.

    Raises:
        CompositionError: a part cannot be written down, or does not rebuild to the same tensors.
        ValueError: a weight is not finite.
        OSError: the file cannot be written; an old file is left as it was.
    """
    recipe = model.recipe().with_notes(notes or {})
    tensors, tied = _tensors(model)
    if wrong := not_finite(model, tensors):
        raise ValueError(f"the model holds weights that are not finite, and a file of it could not be read: {wrong}")
    _check_rebuilds(model, recipe)
    record = {
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "recipe": recipe.to_json(),
        "providers": _providers(model),
        "tied": tied,
    }
    metadata = {"format": "pt", "ldmkit": json.dumps(record)}
    write_atomically(Path(path), lambda partial: save_file(tensors, partial, metadata))


def load(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LatentDiffusion:
    """Rebuild a model that :func:`save` wrote, in eval mode.

    Args:
        path: the file.
        device: where to put it.
        dtype: of the backbone and conditioners; None keeps what the file holds. The first stage keeps its own.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not a file of ours, damaged, or its tensors do not match its recipe.
        UnknownComponentError: a part is not installed here.
    """
    recipe, tied, tensors = read(path)
    try:
        with without_initialisation():
            model = compose(recipe)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the recipe in {path} does not build: {error}") from error
    _fill(model, tensors, tied, Path(path))
    model.to(device).eval()
    return model if dtype is None else model.cast(dtype)


def read(path: str | os.PathLike[str]) -> tuple[Recipe, dict[str, str], dict[str, Tensor]]:
    """(recipe, tied name -> name that is stored, tensors) of a file of ours; builds nothing.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: not a file of ours, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with _opened(path) as file:
        recipe, tied = _record(file.metadata() or {}, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return recipe, tied, tensors


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe of a file of ours, with its notes; reads no tensor.

    Raises:
        CheckpointError: not a file of ours.
    """
    path = Path(path)
    with _opened(path) as file:
        return _record(file.metadata() or {}, path)[0]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; what it cannot read is a CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then give it the name: all or nothing."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    partial.touch(exist_ok=False)
    mode = partial.stat().st_mode  # as this process makes files; some writers make private ones
    try:
        write(partial)
        partial.chmod(mode)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


class _NoRandomInitialisation(TorchFunctionMode):
    """Random in-place fills do nothing: the weights come from a file."""

    FILLS = frozenset(
        {
            Tensor.uniform_,
            Tensor.normal_,
            nn.init.uniform_,
            nn.init.normal_,
            nn.init.trunc_normal_,
            nn.init.xavier_uniform_,
            nn.init.xavier_normal_,
            nn.init.kaiming_uniform_,
            nn.init.kaiming_normal_,
            nn.init.orthogonal_,
        }
    )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - torch's own signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in self.FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build modules on their real device without drawing weights that a file overwrites."""
    with _NoRandomInitialisation():
        yield


def _tensors(model: LatentDiffusion) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors to store, tied name -> stored name)."""
    stored: dict[int, str] = {}
    tensors, tied = {}, {}
    for name, value in model.state_dict(keep_vars=True).items():
        first = stored.setdefault(id(value), name)
        if first != name:
            tied[name] = first
        else:
            tensors[name] = value.detach().cpu().contiguous()
    return tensors, tied


def _providers(model: LatentDiffusion) -> dict[str, str]:
    """Distribution -> version of every part."""
    parts = [model.first_stage, model.backbone, model.process]
    parts += list(model.conditioner.sources.values()) if model.conditioner is not None else []
    built = [origin(part) for part in parts]
    return {"ldmkit": __version__, **{o.distribution: o.version for o in built if o is not None}}


def _check_rebuilds(model: LatentDiffusion, recipe: Recipe) -> None:
    """Refuse a model that its own recipe, as a file would give it back, does not describe."""
    with without_initialisation():
        again = compose(Recipe.from_json(json.loads(json.dumps(recipe.to_json()))))
    ours, theirs = _shapes(model), _shapes(again)
    if ours != theirs:
        different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        raise CompositionError(
            f"the model differs from what its recipe builds, in {len(different)} tensors such as {different[:5]}: a "
            "part was changed after it was built; build it with the options it should have, or merge the adapter"
        )


def not_finite(model: LatentDiffusion, tensors: Mapping[str, Tensor]) -> list[str]:
    """The parameters that hold something not finite, and the buffers that hold NaN (a mask may hold -inf)."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    floating = {name: value for name, value in tensors.items() if value.is_floating_point()}
    bad = [
        name
        for name, value in floating.items()
        if bool(value.isnan().any()) or (name in parameters and not bool(value.isfinite().all()))
    ]
    return [f"{name}: not finite" for name in sorted(bad)]


def _is_data(name: str) -> bool:
    """Whether a tensor is what ``get_extra_state`` gave: bytes of a tokenizer, class names; of any length."""
    return name.endswith("_extra_state")


def _shapes(model: LatentDiffusion) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor; () for data, whose length is its own affair."""
    return {name: () if _is_data(name) else tuple(value.shape) for name, value in model.state_dict().items()}


def _record(metadata: Mapping[str, str], path: Path) -> tuple[Recipe, dict[str, str]]:
    """(recipe, tied name -> stored name) from the metadata of a file."""
    if "ldmkit" not in metadata:
        raise CheckpointError(
            f"{path} holds tensors but no recipe of ldmkit: files of other programs are read by an importer"
        )
    try:
        record = json.loads(metadata["ldmkit"])
        if record["format_version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} was written by ldmkit {record['library_version']} in format {record['format_version']}; this "
                f"is ldmkit {__version__}, which reads up to {FORMAT_VERSION}: upgrade ldmkit"
            )
        tied = record["tied"]
        if not isinstance(tied, dict) or not all(isinstance(name, str) for name in tied.values()):
            raise ValueError("the names of tied tensors are not a mapping of names")
        return Recipe.from_json(record["recipe"]), tied
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the recipe in {path} cannot be read: {error}") from error


def _fill(model: LatentDiffusion, tensors: dict[str, Tensor], tied: Mapping[str, str], path: Path) -> None:
    """Copy the tensors in, after accounting for every one of them."""
    tensors = {**tensors, **{name: tensors[stored] for name, stored in tied.items() if stored in tensors}}
    expected = model.state_dict()
    wrong = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    wrong += [f"unexpected {name}" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        if not _is_data(name) and expected[name].shape != tensors[name].shape:
            wrong.append(
                f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(expected[name].shape)} in the model"
            )
    wrong += not_finite(model, tensors)
    if wrong:
        more = f", and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise CheckpointError(f"the tensors of {path} do not fit its recipe: {'; '.join(sorted(wrong)[:20])}{more}")
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if name in tensors:
            value.data = value.data.to(tensors[name].dtype)
    model.load_state_dict(tensors)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
