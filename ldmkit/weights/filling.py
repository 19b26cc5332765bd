"""Tensors from an open file into a module that was built for them, one at a time.

A tensor takes the place of the one it fills, whose memory was never touched, so that there is one copy of the weights
and never a second of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from ldmkit.errors import CheckpointError
from ldmkit.weights.finite import is_finite
from ldmkit.weights.original import scale
from ldmkit.weights.reading import Contents
from ldmkit.weights.report import SHOWN


def fill(
    module: nn.Module,
    used: Mapping[str, str],
    contents: Contents,
    dtype: torch.dtype | None = None,
    allow_not_finite: bool = False,
) -> None:
    """Read every tensor into its place, in the order in which they lie in the file.

    Args:
        module: built and not used yet: after an error it holds some of the file's tensors.
        used: name in the module -> name in the file; shapes are known to be equal.
        contents: the open file.
        dtype: of everything but the first stage; None: as the file has each of the parts.
        allow_not_finite: take weights that are infinite or NaN.

    Raises:
        CheckpointError: the file ends early, or holds weights that are not finite.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    places: dict[str, Tensor] = {**dict(module.named_buffers(remove_duplicate=False)), **parameters}
    kept, bad = _precisions(used, contents), []
    for ours, theirs in sorted(used.items(), key=lambda names: contents.tensors[names[1]].place):
        value = contents.read(theirs)
        if not allow_not_finite and not is_finite(value, infinity=ours not in parameters):
            bad.append(theirs)
        if ours == "first_stage.scale":
            places[ours].data = scale(value).float()
            continue
        wanted = kept[_part(ours)] if dtype is None or ours.startswith("first_stage.") else dtype
        places[ours].data = value.to(wanted) if value.is_floating_point() else value
        if (
            not allow_not_finite
            and wanted != value.dtype
            and not is_finite(places[ours], infinity=ours not in parameters)
        ):
            bad.append(f"{theirs} (in {wanted})")
    if bad:
        more = f", and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise CheckpointError(f"{contents.path} holds weights that are not finite: {', '.join(bad[:SHOWN])}{more}")


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to, which has one precision."""
    levels = 3 if name.startswith("conditioner.") else 1
    return ".".join(name.split(".")[:levels])


def _precisions(used: Mapping[str, str], contents: Contents) -> dict[str, torch.dtype]:
    """Part -> the widest kind among its tensors, at most float32: networks do not compute in several."""
    kinds: dict[str, list[torch.dtype]] = {}
    for ours, theirs in used.items():
        dtype = contents.tensors[theirs].dtype
        if dtype.is_floating_point:
            kinds.setdefault(_part(ours), []).append(torch.float32 if dtype == torch.float64 else dtype)
    return {part: reduce(torch.promote_types, set(found)) for part, found in kinds.items()}
