"""The original implementation's names for the tensors of a composed model.

Our components keep the published names of their parameters, so the map is a table of prefixes:

==================================  ===============================================
here                                in a checkpoint of the original
==================================  ===============================================
``denoiser.backbone.*``             ``model.diffusion_model.*``
the same, averaged                  ``model_ema.diffusion_model*``, without any dot
``first_stage.*``                   ``first_stage_model.*``
``first_stage.scale``               ``scale_factor``, where the file has one
``conditioner.sources.NAME.*``      ``cond_stage_model.*``
``objective.log_variance``          ``logvar``, where it was learned
==================================  ===============================================

A conditioner whose tensors have other names there says so, see :class:`Claiming`. The schedule's tables are compared
with the model's process and not copied. Reading files is not done here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ldmkit.conditioning import Conditioner
from ldmkit.errors import CheckpointError
from ldmkit.model import LatentDiffusion
from ldmkit.process import VP, Process
from ldmkit.weights.report import Account

BACKBONE, BACKBONE_EMA = "model.diffusion_model.", "model_ema.diffusion_model"
FIRST_STAGE, CONDITIONER = "first_stage_model.", "cond_stage_model."

SCHEDULE = frozenset(
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    }
)

UNUSED: Mapping[str, str] = {
    "model_ema.decay": "bookkeeping of the average",
    "model_ema.num_updates": "bookkeeping of the average",
    "loss.": "the loss of the first stage: its discriminator and perceptual network",
    "first_stage_model.loss.": "the loss of the first stage: its discriminator and perceptual network",
    "ddim_": "tables of a sampler",
    "lvlb_weights": "a table of the loss",
    "low_scale_model.": "the schedule by which the low-resolution image is noised, which the conditioner computes",
    "depth_model.": "the network that estimates depth: depth maps come from the user",
    "embedder.": "the image tower: embeddings come from the user",
    "noise_augmentor.": "the schedule by which the embedding is noised, which the conditioner computes",
    "cond_stage_model.transformer.text_model.embeddings.position_ids": "the numbers from 0, which are no weights",
}
"""Prefix of names in files of the original -> why those tensors have no place in a model."""


class Sized(Protocol):
    """A tensor, or what a file says of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""


@runtime_checkable
class Claiming(Protocol):
    """A conditioner whose tensors have other names in files of the original than ``cond_stage_model.`` and its own."""

    def claims(self, names: Collection[str]) -> Mapping[str, str | None]:
        """The file's names that are the conditioner's -> its own, or None for what it knows and does not use.

        Args:
            names: all names in the file, with their prefixes.
        """


def original_names(model: LatentDiffusion, ema: bool = False, given: Collection[str] = ()) -> dict[str, str]:
    """Our name -> the original's, for every tensor of a model but the scale of its first stage.

    What a component keeps as data (``get_extra_state``) has no place in the original's files.

    Args:
        model: the composed model; at most one of its conditioners may have parameters, beside those that claim theirs.
        ema: name the averaged weights of the network.
        given: the names in a file, for conditioners that claim theirs.

    Raises:
        CheckpointError: two conditioners have parameters; the original's format has one place for them.
    """
    prefixes = {"denoiser.backbone.": BACKBONE, "first_stage.": FIRST_STAGE}
    sources = _with_tensors(model)
    plain = [name for name, source in sources.items() if not isinstance(source, Claiming)]
    if len(plain) > 1:
        raise CheckpointError(f"the original's format holds one conditioner, this model has {plain}")
    prefixes |= {f"conditioner.sources.{name}.": CONDITIONER for name in sources}
    names = {}
    for key in model.state_dict():
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        if prefix is None or key == "first_stage.scale" or _is_data(key):
            continue
        names[key] = prefixes[prefix] + key.removeprefix(prefix)
        if ema and prefix == "denoiser.backbone.":
            names[key] = averaged_name(f"diffusion_model.{key.removeprefix(prefix)}")
    names |= {ours: theirs for ours, theirs in _claims(model, given) if ours in names}
    return names


def averaged_name(name: str) -> str:
    """The name under which the original keeps the average of a parameter: every dot is lost."""
    return f"model_ema.{name.replace('.', '')}"


def load_original(model: LatentDiffusion, state: Mapping[str, Tensor], ema: bool = True) -> None:
    """Fill a model from a state dict with the original's names, accounting for every tensor.

    Args:
        model: composed as the checkpoint was.
        state: the checkpoint's ``state_dict``.
        ema: take the averaged network weights, where the file has them.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape, or the schedule is another one; before
            anything is copied.
    """
    averaged = ema and has_average(state)
    found = account(model, state, averaged, lambda a, b: torch.equal(state[a], state[b]))
    found.check()
    check_tables(model, state, state.__getitem__)
    tensors = {ours: state[theirs] for ours, theirs in found.used.items()}
    if "first_stage.scale" in tensors:
        tensors["first_stage.scale"] = scale(tensors["first_stage.scale"])
    model.load_state_dict({**model.state_dict(), **tensors})


def has_average(names: Collection[str]) -> bool:
    """Whether a file holds averaged weights of the network beside the raw ones."""
    return any(name.startswith(BACKBONE_EMA) for name in names)


def account(
    model: LatentDiffusion,
    given: Mapping[str, Sized],
    averaged: bool,
    equal: Callable[[str, str], bool],
    unused: Mapping[str, str] | None = None,
) -> Account:
    """Every tensor of a file beside every tensor of a model; nothing is copied.

    Args:
        model: composed as the file says or as the user says.
        given: the file's tensors by name, with their shapes and dtypes.
        averaged: take the averaged weights of the network.
        equal: whether two tensors of the file hold the same numbers; asked where one may be the other once more.
        unused: further prefixes of names -> why they have no place, beside :data:`UNUSED`.

    Raises:
        CheckpointError: two conditioners have parameters.
    """
    names, ours = original_names(model, averaged, given), model.state_dict()
    if "scale_factor" in given and "first_stage.scale" in ours:
        names["first_stage.scale"] = "scale_factor"
    if "logvar" in given and "objective.log_variance" in ours:
        names["objective.log_variance"] = "logvar"
    exact = dict.fromkeys(original_names(model, not averaged, given).values(), _other_weights(averaged))
    exact |= {
        theirs: "known to its conditioner, which has no use for it" for own, theirs in _claims(model, given) if not own
    }
    exact |= dict.fromkeys(SCHEDULE, "a table of the schedule, compared with the model's")
    if not _with_tensors(model):
        exact |= dict.fromkeys(_tied(given, equal), "the first stage once more")
    taken = {*names.values(), "scale_factor", "logvar"}
    # Whether a conditioner is the first stage is looked at, and not taken from a recipe.
    prefixes = {**UNUSED, **(unused or {})}
    prefixes.pop(CONDITIONER, None)
    ignored = {name: why for name in given if name not in taken and (why := exact.get(name) or _why(name, prefixes))}
    return Account(
        used={own: theirs for own, theirs in names.items() if theirs in given},
        ignored=ignored,
        missing=sorted(theirs for theirs in names.values() if theirs not in given),
        unexpected=sorted(name for name in given if name not in taken and name not in ignored),
        wrong=misfits({theirs: (given[theirs], ours[own]) for own, theirs in names.items() if theirs in given}),
    )


def misfits(pairs: Mapping[str, tuple[Sized, Sized]]) -> list[str]:
    """What is of another shape or kind than it should be, as sentences: name -> (in the file, in the model)."""
    wrong = []
    for name, (theirs, ours) in pairs.items():
        if tuple(theirs.shape) != tuple(ours.shape) and name != "scale_factor":
            wrong.append(f"{name}: {tuple(theirs.shape)}, here {tuple(ours.shape)}")
        elif theirs.dtype.is_floating_point != ours.dtype.is_floating_point:
            wrong.append(f"{name}: {theirs.dtype}, here {ours.dtype}")
    return wrong


def check_tables(model: LatentDiffusion, names: Collection[str], read: Callable[[str], Tensor]) -> None:
    """Compare what a file says about the schedule, the scale and the objective with what the model was composed with.

    Raises:
        CheckpointError: another schedule, a scale that is none, or a log-variance without a place.
    """
    _check_schedule(model.process, names, read)
    if "scale_factor" in names:
        scale(read("scale_factor"))
    if "logvar" not in names:
        return
    times, ours = read("logvar").shape, model.objective.log_variance
    if ours is None or ours.shape != times:
        raise CheckpointError(
            "the checkpoint learned a log-variance per time ('logvar'), which this model has no place for: compose it "
            f"with objective=DenoisingLoss(learn_log_variance=True, times={times.numel()})"
        )


def scale(value: Tensor) -> Tensor:
    """The factor of the latents, 0-d, out of a file's ``scale_factor``.

    Raises:
        CheckpointError: not one positive number.
    """
    if value.numel() != 1 or not bool(value.isfinite().all()) or float(value) <= 0:
        said = value.tolist() if value.numel() <= 10 else f"a tensor of shape {tuple(value.shape)}"
        raise CheckpointError(f"the checkpoint's scale_factor must be one positive number, got {said}")
    return value.reshape(())


def _check_schedule(process: Process, names: Collection[str], read: Callable[[str], Tensor]) -> None:
    """Compare the betas and their products, where the file has them, with the process the model was composed with."""
    given = [name for name in ("betas", "alphas_cumprod") if name in names]
    if given and not isinstance(process, VP):
        raise CheckpointError(f"the checkpoint holds a table of betas, and {process} has none: compose it with a VP")
    for name in given:
        field = {"betas": "beta", "alphas_cumprod": "alpha_bar"}[name]
        ours, theirs = getattr(process, field), read(name).double()
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-4, atol=1e-8):
            raise CheckpointError(
                f"the checkpoint was trained on another schedule than {process}: '{name}' differs. Its first and last "
                f"are {theirs.flatten()[:1].tolist()} and {theirs.flatten()[-1:].tolist()}"
            )


def _with_tensors(model: LatentDiffusion) -> dict[str, Conditioner]:
    """The conditioners that hold more than data."""
    sources = {} if model.conditioner is None else model.conditioner.conditioners()
    modules = {} if model.conditioner is None else dict(model.conditioner.sources.items())
    return {name: sources[name] for name, module in modules.items() if not all(map(_is_data, module.state_dict()))}


def _is_data(key: str) -> bool:
    return key.endswith("_extra_state")


def _claims(model: LatentDiffusion, given: Collection[str]) -> list[tuple[str | None, str]]:
    """(our name or None, the file's name) of everything that conditioners claim."""
    found: list[tuple[str | None, str]] = []
    for name, source in ({} if model.conditioner is None else model.conditioner.conditioners()).items():
        for theirs, own in source.claims(given).items() if isinstance(source, Claiming) else ():
            found.append((None if own is None else f"conditioner.sources.{name}.{own}", theirs))
    return found


def _tied(given: Mapping[str, Sized], equal: Callable[[str, str], bool]) -> list[str]:
    """The names of a conditioner that is the first stage, written a second time."""
    twins = {name: FIRST_STAGE + name.removeprefix(CONDITIONER) for name in given if name.startswith(CONDITIONER)}
    return [
        name
        for name, twin in twins.items()
        if twin in given and given[name].shape == given[twin].shape and equal(name, twin)
    ]


def _other_weights(averaged: bool) -> str:
    return "raw weights of the network" if averaged else "averaged weights of the network"


def _why(name: str, prefixes: Mapping[str, str]) -> str | None:
    return next((why for start, why in prefixes.items() if name.startswith(start)), None)
