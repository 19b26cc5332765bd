"""What a file of weights is and holds, told without reading a weight."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping

from ldmkit.parts import Recipe
from ldmkit.recipes.fingerprints import candidates, first_stage_candidates
from ldmkit.weights.native import read_recipe
from ldmkit.weights.original import BACKBONE_EMA, FIRST_STAGE, has_average
from ldmkit.weights.pickles import count
from ldmkit.weights.reading import Contents, opened
from ldmkit.weights.shards import SUFFIX
from ldmkit.weights.stored import Stored

_GROUPS = ("model.diffusion_model.", BACKBONE_EMA, FIRST_STAGE, "cond_stage_model.", "loss.")


def inspect(path: str | os.PathLike[str]) -> str:
    """Describe a file: its format, its tensors by part, what lies beside them, and which model it is.

    Args:
        path: a file of ours or the index of several; a file of the original, of Stable Diffusion or of a first stage.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read as weights.
    """
    if os.fspath(path).endswith(SUFFIX):
        return "\n".join([f"{path}: the index of a model of ldmkit in several files", *_ours(read_recipe(path))])
    with opened(path) as contents:
        recipe = read_recipe(path) if "ldmkit" in contents.facts else None
        return "\n".join(_lines(contents, recipe))


def _lines(contents: Contents, recipe: Recipe | None) -> Iterator[str]:
    tensors = contents.tensors
    kinds = Counter(str(stored.dtype).removeprefix("torch.") for stored in tensors.values())
    yield f"{contents.path}: {contents.layout}, {contents.path.stat().st_size:,} bytes"
    yield f"tensors  {_sum(tensors)}: {', '.join(f'{kind} {number:,}' for kind, number in kinds.most_common())}"
    for group, members in _grouped(tensors).items():
        yield f"         {group:<26}{_sum(members)}"
    for name, why in contents.others.items():
        yield f"beside   {name:.40}: {why}"
    for name, value in contents.facts.items():
        if name != "ldmkit":
            yield f"says     {name:.40}: {value!s:.80}"
    yield from _model(contents) if recipe is None else _ours(recipe)


def _sum(tensors: Mapping[str, Stored]) -> str:
    return f"{len(tensors):>6,} of {sum(count(stored.shape) for stored in tensors.values()):,} numbers"


def _grouped(tensors: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    """The tensors by the part of the model that their names begin with."""
    groups: dict[str, dict[str, Stored]] = {}
    for name, stored in tensors.items():
        first = next((group for group in _GROUPS if name.startswith(group)), None)
        first = first or (f"{name.partition('.')[0]:.20}." if "." in name else "(no prefix)")
        groups.setdefault(first if len(groups) < 40 else "(others)", {})[name] = stored
    return groups


def _model(contents: Contents) -> Iterator[str]:
    """Which published model it may be, and the call that imports it."""
    names, stages = candidates(contents.shapes), first_stage_candidates(contents.shapes)
    if has_average(contents.tensors):
        yield "weights  raw and averaged ones of the network; ema='raw' takes the raw ones"
    if names:
        yield f"is       {_any_of(names)}"
        yield f"import   ldmkit.import_checkpoint('{contents.path}', recipe='{names[0]}')"
    elif stages:
        yield f"is       the first stage {_any_of(stages)}"
        yield f"import   ldmkit.import_first_stage('{contents.path}', '{stages[0]}')"
    else:
        yield "is       none of the published models: compose it with a Recipe or with its config.yaml"


def _ours(recipe: Recipe) -> Iterator[str]:
    """The parts of a file of ours."""
    yield f"recipe   predicts {recipe.prediction}"
    for kind, part in recipe.parts():
        yield f"         {kind:<13} {part.name}"
    yield "import   ldmkit.load(path)"


def _any_of(names: list[str]) -> str:
    return f"'{names[0]}'" if len(names) == 1 else f"one of {', '.join(repr(name) for name in names)}"
