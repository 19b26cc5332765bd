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
==================================  ===============================================

The schedule's buffers are compared with the model's process and not copied. Reading files is the importer's work.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ldmkit.errors import CheckpointError
from ldmkit.model import LatentDiffusion
from ldmkit.process import VP, Process

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


def original_names(model: LatentDiffusion, ema: bool = False) -> dict[str, str]:
    """Our name -> the original's, for every tensor of a model but the scale of its first stage.

    Args:
        model: the composed model; at most one of its conditioners may have parameters.
        ema: name the averaged weights of the network.

    Raises:
        CheckpointError: two conditioners have parameters; the original's format has one place for them.
    """
    prefixes = {"denoiser.backbone.": "model.diffusion_model.", "first_stage.": "first_stage_model."}
    sources = [] if model.conditioner is None else list(model.conditioner.sources.items())
    with_tensors = [name for name, source in sources if source.state_dict()]
    if len(with_tensors) > 1:
        raise CheckpointError(f"the original's format holds one conditioner, this model has {with_tensors}")
    prefixes |= {f"conditioner.sources.{name}.": "cond_stage_model." for name in with_tensors}
    names = {}
    for key in model.state_dict():
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        if prefix is None or key == "first_stage.scale":
            continue
        names[key] = prefixes[prefix] + key.removeprefix(prefix)
        if ema and prefix == "denoiser.backbone.":
            names[key] = "model_ema.diffusion_model" + key.removeprefix(prefix).replace(".", "")
    return names


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
    has_ema = any(key.startswith("model_ema.diffusion_model") for key in state)
    names = original_names(model, ema=ema and has_ema)
    other = set(original_names(model, ema=not (ema and has_ema)).values()) if has_ema else set()
    known = {*names.values(), *other, *SCHEDULE, "model_ema.decay", "model_ema.num_updates", "scale_factor", "logvar"}
    wrong = [f"missing {theirs}" for theirs in names.values() if theirs not in state]
    wrong += [f"unexpected {key}" for key in state if key not in known]
    ours = model.state_dict()
    for key, theirs in names.items():
        if theirs in state and state[theirs].shape != ours[key].shape:
            wrong.append(f"{theirs}: {tuple(state[theirs].shape)}, here {tuple(ours[key].shape)}")
    if wrong:
        raise CheckpointError(f"{len(wrong)} tensors do not fit the model: {'; '.join(sorted(wrong)[:20])}")
    _check_schedule(model.process, state)
    if "logvar" in state and ours.get("objective.log_variance", state["logvar"][:0]).shape != state["logvar"].shape:
        raise CheckpointError(
            "the checkpoint learned a log-variance per time ('logvar'), which this model has no place for: compose it "
            f"with objective=DenoisingLoss(learn_log_variance=True, times={state['logvar'].numel()})"
        )
    tensors = {key: state[theirs] for key, theirs in names.items()}
    if "scale_factor" in state and "first_stage.scale" in ours:
        tensors["first_stage.scale"] = _scale(state["scale_factor"])
    if "logvar" in state:
        tensors["objective.log_variance"] = state["logvar"]
    model.load_state_dict({**ours, **tensors})


def _check_schedule(process: Process, state: Mapping[str, Tensor]) -> None:
    """Compare the betas and their products, where the file has them, with the process the model was composed with."""
    given = [name for name in ("betas", "alphas_cumprod") if name in state]
    if given and not isinstance(process, VP):
        raise CheckpointError(f"the checkpoint holds a table of betas, and {process} has none: compose it with a VP")
    for name in given:
        field = {"betas": "beta", "alphas_cumprod": "alpha_bar"}[name]
        ours, theirs = getattr(process, field), state[name].double()
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-4, atol=1e-8):
            raise CheckpointError(f"the checkpoint was trained on another schedule than {process}: '{name}' differs")


def _scale(scale: Tensor) -> Tensor:
    if scale.numel() != 1 or not bool(scale.isfinite().all()) or float(scale) <= 0:
        raise CheckpointError(f"the checkpoint's scale_factor must be one positive number, got {scale.tolist()}")
    return scale.reshape(())
