r"""Averages of weights whose length is chosen after training.

.. math::

    \bar w_\gamma(t) = \beta_\gamma(t) \, \bar w_\gamma(t - 1) + (1 - \beta_\gamma(t)) \, w(t), \qquad
    \beta_\gamma(t) = (1 - 1/t)^{\gamma + 1}

t counts the updates from 1. The weight of update :math:`\tau` in the average is the integral over
:math:`(\tau - 1, \tau]` of the profile :math:`p_{\gamma, t}(\tau) = (\gamma + 1) \tau^\gamma / t^{\gamma + 1}`. Unlike
that of an :class:`~ldmkit.training.EMA` it widens with the run; its deviation relative to t says how wide it is:

.. math:: \sigma_{rel} = (\gamma + 1)^{1/2} (\gamma + 2)^{-1} (\gamma + 3)^{-1/2}

A run keeps snapshots of a few such averages; :func:`reconstruct` combines them to the average of any
:math:`\sigma_{rel}`, the one whose profile is nearest in the least-squares sense.

Source: Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3.1 and appendix C.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ldmkit.errors import CheckpointError
from ldmkit.training.parallel import rank
from ldmkit.weights.atomic import write_atomically

WIDEST = 12**-0.5
"""sigma_rel of the plain mean over all updates, gamma = 0."""


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile with a relative deviation.

    Raises:
        ValueError: a deviation outside (0, 12**-0.5], that of the plain mean.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel lies in (0, {WIDEST:.4f}], got {sigma_rel}")
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


@dataclass(frozen=True)
class PowerProfile:
    """Which averages a run tracks, and how often it keeps them.

    Args:
        every: updates between snapshots. The paper has about a hundred in a run.
        sigma_rels: relative deviations of the averages, in (0, 0.2887]; two span what is wanted between and near them.
        dtype: of the snapshots, float32 or float16; the averages are float32.

    Raises:
        ValueError: no interval, no deviations, one out of range, or another dtype.
    """

    every: int
    sigma_rels: tuple[float, ...] = (0.05, 0.10)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is a number of updates, at least 1, got {self.every}")
        if not self.sigma_rels or len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise ValueError(f"sigma_rels are different deviations, at least one, got {self.sigma_rels}")
        for sigma_rel in self.sigma_rels:
            gamma_of(sigma_rel)
        if self.dtype not in (torch.float32, torch.float16):
            raise ValueError(f"snapshots are float32 or float16, got {self.dtype}")


class PowerEMA:
    """The averages of a module's trainable parameters by power profiles.

    Args:
        module: the module to follow; parameters that need no gradient when this is made are left out.
        profile: which averages.

    Raises:
        ValueError: nothing to average.
    """

    def __init__(self, module: nn.Module, profile: PowerProfile) -> None:
        self.profile = profile
        self.updates = 0
        weights = {name: p.detach().float() for name, p in module.named_parameters() if p.requires_grad}
        if not weights:
            raise ValueError(f"{type(module).__name__} has no trainable parameters to average")
        self.averages = {s: {name: torch.zeros_like(w) for name, w in weights.items()} for s in profile.sigma_rels}
        self._gammas = {sigma_rel: gamma_of(sigma_rel) for sigma_rel in profile.sigma_rels}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the averages toward the module's weights; call after each optimizer step."""
        self.updates += 1
        weights = dict(module.named_parameters())
        for sigma_rel, averages in self.averages.items():
            beta = (1 - 1 / self.updates) ** (self._gammas[sigma_rel] + 1)
            torch._foreach_lerp_(list(averages.values()), [weights[n].detach().float() for n in averages], 1 - beta)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every average as ``<sigma_rel>/<name>``."""
        for sigma_rel, averages in self.averages.items():
            for name, average in averages.items():
                yield f"{sigma_rel}/{name}", average

    def snapshot(self, folder: Path) -> None:
        """Write the averages as they are now, as ``<updates>.safetensors``; every process calls it.

        Raises:
            ValueError: a weight that float16 cannot hold.
            OSError: it cannot be written.
        """
        tensors = {name: _kept(average, self.profile.dtype) for name, average in self.named()}
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"average {name} does not fit into {self.profile.dtype}: keep snapshots in float32")
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            said = {"updates": str(self.updates), "sigma_rels": json.dumps(self.profile.sigma_rels)}
            path = folder / f"{self.updates:08d}.safetensors"
            write_atomically(path, lambda partial: save_file(tensors, partial, said))


def _kept(average: Tensor, dtype: torch.dtype) -> Tensor:
    """The whole average in memory of its own, also where each process holds a share."""
    whole: Tensor = average.full_tensor() if isinstance(average, DTensor) else average
    return whole.to("cpu", dtype, copy=True).contiguous()


def overlap(gamma: np.ndarray, t: np.ndarray, other_gamma: np.ndarray, other_t: np.ndarray) -> np.ndarray:
    r"""The inner product of two profiles, :math:`\int p_{\gamma, t} \, p_{\gamma', t'} d\tau`, element by element."""
    least, most = np.minimum(t, other_t), np.maximum(t, other_t)
    share = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
    product: np.ndarray = share * (least / t) ** gamma * (least / other_t) ** other_gamma / most
    return product


def combination(snapshots: Sequence[tuple[float, int]], sigma_rel: float, updates: int) -> np.ndarray:
    """The weights with which snapshots are summed to an average that was not tracked.

    Args:
        snapshots: K pairs of a relative deviation and a number of updates.
        sigma_rel: of the profile that is wanted.
        updates: when it ends.

    Returns:
        (K,), float64: the least-squares solution for the profile.

    Source: Karras et al. 2024, appendix C.2, algorithm 3.
    """
    gammas = np.array([gamma_of(sigma) for sigma, _ in snapshots])
    times = np.array([float(t) for _, t in snapshots])
    wanted, end = np.array(gamma_of(sigma_rel)), np.array(float(updates))
    products = overlap(gammas[:, None], times[:, None], gammas[None], times[None])
    solution: np.ndarray = np.linalg.lstsq(products, overlap(gammas, times, wanted, end), rcond=None)[0]
    return solution


def reconstruct(folder: str | os.PathLike[str], sigma_rel: float, updates: int | None = None) -> dict[str, Tensor]:
    """The average of any length, from the snapshots of a phase.

    >>> state = reconstruct("runs/a/profiles/diffusion", 0.12)
    >>> trainee.phases["diffusion"].load_state_dict(state, strict=False)

    It is as good as the snapshots: best near the deviations that were tracked, and between them.

    Args:
        folder: of the phase, ``profiles/<phase>`` in the run's folder.
        sigma_rel: the relative deviation that is wanted, in (0, 0.2887].
        updates: of the snapshot that the average ends with; None: the last.

    Returns:
        The trained weights by their names in the phase's module, float32.

    Raises:
        ValueError: a deviation out of range, or a number of updates of which there is no snapshot.
        FileNotFoundError: no snapshots.
        CheckpointError: a damaged snapshot, or one of other weights.
    """
    paths = {int(path.stem): path for path in sorted(Path(folder).glob("*.safetensors"))}
    if not paths:
        raise FileNotFoundError(f"{folder} holds no snapshots: train with Run(profile=PowerProfile(every=...))")
    end = max(paths) if updates is None else updates
    if end not in paths:
        raise ValueError(f"there is no snapshot after {end} updates, but after {sorted(paths)}")
    found = [(sigma, t) for t, path in paths.items() if t <= end for sigma in _deviations(path)]
    factors = dict(zip(found, combination(found, sigma_rel, end).tolist(), strict=True))
    state: dict[str, Tensor] = {}
    for (sigma, t), factor in factors.items():
        _add(state, _averages(paths[t], sigma), factor)
    return {name: total.float() for name, total in state.items()}


def _deviations(path: Path) -> list[float]:
    """Of which averages a snapshot is."""
    try:
        with safe_open(path, "pt") as file:
            deviations: list[float] = json.loads((file.metadata() or {})["sigma_rels"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no snapshot of a run's averages: {error}") from error
    return deviations


def _averages(path: Path, sigma_rel: float) -> dict[str, Tensor]:
    """One average of a snapshot, by the names of its weights."""
    prefix = f"{sigma_rel}/"
    with safe_open(path, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 - no mapping
        return {key.removeprefix(prefix): file.get_tensor(key) for key in keys}


def _add(state: dict[str, Tensor], averages: Mapping[str, Tensor], factor: float) -> None:
    """Add a multiple of an average to the sums, which are float64: factors are large and cancel."""
    different = sorted(averages.keys() ^ state.keys()) if state else []
    if different:
        raise CheckpointError(f"the snapshots are of different weights, such as {different[:3]}")
    for name, average in averages.items():
        scaled = average.double() * factor
        state[name] = state[name].add_(scaled) if name in state else scaled
