"""Models out of files of the original implementation: a composition, and a file that fills it.

A recipe, a configuration or the file's own shapes say how the model is composed. Then every tensor of the file is
accounted for, and only then is one read, each into its place: one copy of the weights is in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import nn

from ldmkit.composition import FirstStage
from ldmkit.errors import CheckpointError
from ldmkit.model import LatentDiffusion, compose
from ldmkit.parts import Part, Recipe
from ldmkit.recipes import recipe as recipe_by_name
from ldmkit.recipes.fingerprints import candidates, first_stage_candidates
from ldmkit.recipes.first_stages import first_stage
from ldmkit.registry import build_part
from ldmkit.weights.config import published_with_one_head, recipe_from_config
from ldmkit.weights.filling import fill
from ldmkit.weights.native import without_initialisation
from ldmkit.weights.original import (
    FIRST_STAGE,
    UNUSED,
    account,
    averaged_name,
    check_tables,
    has_average,
    misfits,
    scale,
)
from ldmkit.weights.reading import Contents, opened
from ldmkit.weights.report import Account, Report

Weights: TypeAlias = Literal["auto", "averaged", "raw"]
_File: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class Imported:
    """A model, the recipe it was composed by, and what became of every tensor of its file."""

    model: LatentDiffusion
    recipe: Recipe
    report: Report


@runtime_checkable
class ReadsTokenizer(Protocol):
    """A conditioner whose tokenizer may come after its weights."""

    def read_tokenizer(self, source: str) -> None:
        """Read a tokenizer from a file, a folder or a hub id."""


def import_checkpoint(
    path: _File,
    *,
    recipe: str | Recipe | None = None,
    config: _File | None = None,
    ema: Weights = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    allow_not_finite: bool = False,
) -> LatentDiffusion:
    """A model out of a file of the original implementation or of Stable Diffusion, in eval mode.

    Args:
        path: a ``.ckpt`` that Lightning or ``torch.save`` wrote, or a safetensors file with the same names.
        recipe: how the model is composed: the name of a published model, or a :class:`Recipe`.
        config: instead, the original's YAML file. Without either the model is recognised by its tensors.
        ema: ``averaged`` or ``raw`` weights of the network; ``auto``: the averaged ones, where the file has both.
        device: where to put it.
        dtype: of the backbone and conditioners; None keeps what the file holds. The first stage keeps its own.
        allow_missing: prefixes, in the file's names, of tensors that may be missing; they are then initialised as in a
            new model.
        allow_unexpected: prefixes of tensors that may be there beside.
        allow_not_finite: take weights that are infinite or NaN.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a damaged or hostile file, another model than the recipe's, tensors that are missing,
            unexpected or of another shape, another schedule, or weights that are not finite.
        UnknownComponentError: a part is not installed.
        ValueError: both a recipe and a configuration, or another ``ema``.
    """
    return imported(
        path,
        recipe=recipe,
        config=config,
        ema=ema,
        device=device,
        dtype=dtype,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
        allow_not_finite=allow_not_finite,
    ).model


def imported(
    path: _File,
    *,
    recipe: str | Recipe | None = None,
    config: _File | None = None,
    ema: Weights = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    allow_not_finite: bool = False,
) -> Imported:
    """As :func:`import_checkpoint`, with the report of what was used, renamed, ignored, missing and unexpected."""
    _check_choice(recipe, config, ema)
    _check_prefixes(allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    with opened(path) as contents:
        composition, said = _composition(contents, recipe, config)
        averaged = _averaged(contents, composition, ema)
        model = _composed(composition, fresh=bool(allow_missing), said=said)
        unused = cast(Mapping[str, str], composition.notes.get("unused", {}))
        found = account(model, contents.tensors, averaged, lambda a, b: _equal(contents, a, b), unused)
        with _holding(contents, said):
            found.check(allow_missing, allow_unexpected)
            check_tables(model, contents.tensors, contents.read)
        remarks = [*_remarks(model, contents, found.used), *cast(list[str], composition.notes.get("remarks", []))]
        fill(model, found.used, contents, dtype, allow_not_finite)
    model.to(device).eval()
    weights = "averaged" if averaged else "raw" if has_average(contents.tensors) else "the only"
    report = Report(str(path), contents.layout, said, weights, found, contents.others, remarks)
    return Imported(model if dtype is None else model.cast(dtype), composition, report)


def import_first_stage(
    path: _File,
    part: str | Part | None = None,
    *,
    ema: Weights = "auto",
    device: torch.device | str = "cpu",
    allow_not_finite: bool = False,
) -> FirstStage:
    """A first stage out of its own file, or out of that of a whole model, in eval mode.

    Args:
        path: as for :func:`import_checkpoint`.
        part: the name of a published first stage such as ``kl-f8``, or a :class:`Part`; None: recognised by its
            tensors.
        ema: ``averaged`` or ``raw`` weights; ``auto``: the averaged ones, where the file has both.
        device: where to put it.
        allow_not_finite: take weights that are infinite or NaN.

    Returns:
        The first stage with the part's ``scale``, which files of first stages do not hold.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: as :func:`import_checkpoint`.
    """
    _check_choice(None, None, ema)
    with opened(path) as contents:
        part = first_stage(part) if isinstance(part, str) else part or _recognised_stage(contents)
        with without_initialisation():
            stage = cast(nn.Module, build_part("first-stage", part))
        found = _stage_account(stage, contents, ema)
        with _holding(contents, f"first stage '{part.name}'"):
            found.check()
        fill(stage, found.used, contents, allow_not_finite=allow_not_finite)
    return cast(FirstStage, stage.to(device).eval())


def _check_prefixes(**given: Sequence[str]) -> None:
    for name, prefixes in given.items():
        if isinstance(prefixes, str):
            raise TypeError(f"{name} is a list of prefixes, not their letters: give [{prefixes!r}]")


def _check_choice(recipe: object, config: object, ema: str) -> None:
    if recipe is not None and not isinstance(recipe, str | Recipe):
        raise TypeError(f"recipe= is a name or a Recipe, got {type(recipe).__name__}")
    if recipe is not None and config is not None:
        raise ValueError("the composition is said twice: give a recipe or a config")
    if ema not in ("auto", "averaged", "raw"):
        raise ValueError(f"ema is 'auto', 'averaged' or 'raw', got {ema!r}")


def _composition(contents: Contents, recipe: str | Recipe | None, config: _File | None) -> tuple[Recipe, str]:
    """(recipe, who said so)."""
    if isinstance(recipe, Recipe):
        return recipe, "the recipe that was given"
    if isinstance(recipe, str):
        return recipe_by_name(recipe), f"recipe '{recipe}'"
    if config is not None:
        return _configured(contents, config), f"configuration {config}"
    if "ldmkit" in contents.facts:
        raise CheckpointError(f"{contents.path} is a file of ldmkit, which brings its recipe: use ldmkit.load")
    found = candidates(contents.shapes)
    if len(found) != 1:
        what = f"may be any of {found}" if found else "is none of the published models"
        call = f"recipe={found[0]!r}" if found else "recipe=ldmkit.Recipe(...) or config='config.yaml'"
        raise CheckpointError(f"by its tensors, {contents.path} {what}: say which with {call}")
    return recipe_by_name(found[0]), f"recipe '{found[0]}', recognised by the file's tensors"


def _configured(contents: Contents, config: _File) -> Recipe:
    """The recipe of a configuration, but for those that mean another network than the one that was trained."""
    recipe = recipe_from_config(config)
    if name := published_with_one_head(recipe):
        call = f"ldmkit.import_checkpoint('{contents.path}', recipe="
        raise CheckpointError(
            f"{config} is that of '{name}', which was trained with one head in its transformers although today's code "
            f"reads num_head_channels and builds more; both fit the file. For the published weights: {call}'{name}'). "
            f"For weights that today's code trained: {call}recipe_from_config('{config}')), from ldmkit.weights.config"
        )
    return recipe


def _averaged(contents: Contents, recipe: Recipe, ema: Weights) -> bool:
    """Whether the averaged weights are taken from beside the raw ones."""
    both, only = has_average(contents.tensors), recipe.notes.get("ema") == "only"
    if ema == "averaged" and not both and not only:
        raise CheckpointError(f"{contents.path} holds no averaged weights beside the raw ones: use ema='raw'")
    if ema == "raw" and not both and only:
        raise CheckpointError(f"{contents.path} holds the averaged weights alone: use ema='auto'")
    return both and ema != "raw"


def _composed(recipe: Recipe, fresh: bool, said: str) -> LatentDiffusion:
    """The model, whose weights are drawn only where the file may leave some out."""
    try:
        if fresh:
            return compose(recipe)
        with without_initialisation():
            return compose(recipe)
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(f"the model of {said} cannot be built: {error!s:.200}") from error


def _equal(contents: Contents, name: str, other: str) -> bool:
    """Whether two tensors of a file hold the same numbers; most often they are one."""
    a, b = contents.tensors[name], contents.tensors[other]
    return a == b or (a.dtype == b.dtype and torch.equal(contents.read(name), contents.read(other)))


@contextmanager
def _holding(contents: Contents, said: str) -> Iterator[None]:
    """Name the file and the composition in what is refused meanwhile."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{contents.path} does not hold the model of {said}: {error}") from error


def _remarks(model: LatentDiffusion, contents: Contents, used: Mapping[str, str]) -> list[str]:
    """What the user should know, before the model is filled."""
    remarks = []
    ours = model.state_dict()
    if "first_stage.scale" in used:
        theirs = float(scale(contents.read("scale_factor")))
        remarks.append(
            f"the scale of the latents is the file's, {theirs:.6g}; composed with {ours['first_stage.scale']:.6g}"
        )
    sources = {} if model.conditioner is None else dict(model.conditioner.sources.items())
    for name, source in sources.items():
        empty = any(key.endswith("_extra_state") and not value.numel() for key, value in source.state_dict().items())
        if empty and isinstance(source, ReadsTokenizer):
            remarks.append(
                f"the tokenizer is not in the file: model.conditioner.sources['{name}'].read_tokenizer(...) reads one"
            )
    return remarks


def _recognised_stage(contents: Contents) -> Part:
    found = first_stage_candidates(contents.shapes)
    if len(found) != 1:
        what = f"may be any of {found}" if found else "is none of the published ones"
        raise CheckpointError(f"by its tensors, the first stage in {contents.path} {what}: say which with part=")
    return first_stage(found[0])


def _stage_account(stage: nn.Module, contents: Contents, ema: Weights) -> Account:
    """The tensors of a first stage beside those of its own file, or of a whole model's."""
    given, ours = contents.tensors, {key: value for key, value in stage.state_dict().items() if key != "scale"}
    prefix = FIRST_STAGE if any(name.startswith(FIRST_STAGE) for name in given) else ""
    raw = {key: prefix + key for key in ours}
    mean = {key: averaged_name(key) for key in ours if averaged_name(key) in given} if not prefix else {}
    if ema == "averaged" and not mean:
        raise CheckpointError(f"{contents.path} holds no averaged weights of the first stage: use ema='raw'")
    names = raw | mean if ema != "raw" else raw
    reasons = dict.fromkeys({*raw.values(), *mean.values()}, "weights of the other kind, averaged or raw")
    other = {name: "another part of the model" for name in given if prefix and not name.startswith(prefix)}
    unused = {name: why for name in given for start, why in UNUSED.items() if name.startswith(start)}
    known = {**other, **unused, **reasons}
    return Account(
        used={own: theirs for own, theirs in names.items() if theirs in given},
        ignored={name: known[name] for name in given if name in known and name not in names.values()},
        missing=sorted(theirs for theirs in names.values() if theirs not in given),
        unexpected=sorted(name for name in given if name not in known),
        wrong=misfits({theirs: (given[theirs], ours[own]) for own, theirs in names.items() if theirs in given}),
    )
