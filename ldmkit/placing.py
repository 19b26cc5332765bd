"""Denoising by windows: every window with the part of the conditioning that belongs to its place.

Channels are cut as the state is. Context that depends on the place (a layout) is made once per window by its
conditioner, :class:`Placed`, and travels as one long context of which each window reads its own part, so that every
guidance treats it as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ldmkit.conditioning import Batch, Conditioning, Joint, padded_alike
from ldmkit.denoiser import Denoise
from ldmkit.guidance import Bind, Predicting
from ldmkit.process import Level
from ldmkit.tiling import Window, blended, weights

Region = tuple[float, float, float, float]


@runtime_checkable
class Placed(Protocol):
    """A conditioner whose context says where things are, so that a part of the picture needs one of its own."""

    def placed(self, batch: Batch, region: Region) -> Mapping[str, Any]:
        """What changes in the batch for the part (x0, y0, x1, y1) in [0, 1] of the picture that it asks for."""


def is_placed(conditioner: Joint | None) -> bool:
    """Whether any source says something about places in its context."""
    sources = {} if conditioner is None else conditioner.conditioners()
    return any(isinstance(source, Placed) for source in sources.values())


def by_window(
    condition: Callable[[Batch, Batch | None], tuple[Conditioning, Conditioning | None]],
    conditioner: Joint,
    batch: Batch,
    negative: Batch | None,
    windows: Sequence[Window],
    shape: tuple[int, int],
) -> tuple[Conditioning, Conditioning | None]:
    """cond and uncond with the context of every window, one after the other.

    Args:
        condition: a batch and the negative one to (cond, uncond).
        conditioner: the model's.
        batch: of the whole picture.
        negative: of the whole picture, in place of the null.
        windows: on a map of ``shape``.
        shape: (h, w).
    """
    told = []
    for window in windows:
        region = window.region(shape)
        against = None if negative is None else _of_region(conditioner, negative, region)
        told.append(condition(_of_region(conditioner, batch, region), against))
    count = len(told)
    alike = padded_alike([cond for cond, _ in told] + [uncond for _, uncond in told if uncond is not None])
    cond = _one_after_the_other(alike[:count])
    return cond, _one_after_the_other(alike[count:]) if len(alike) > count else None


def _of_region(conditioner: Joint, batch: Batch, region: Region) -> Batch:
    """The batch of a part of the picture, as every source that knows places says."""
    here = dict(batch)
    for source in conditioner.conditioners().values():
        if isinstance(source, Placed):
            here.update(source.placed(batch, region))
    return here


def by_tiles(bind: Bind, windows: Sequence[Window], shape: tuple[int, int], split: bool) -> Bind:
    """A bind whose denoiser works window by window and blends the estimates.

    Args:
        bind: of the network.
        windows: on the latent, (h, w).
        shape: (h, w).
        split: whether the context holds a part for every window, from :func:`by_window`.
    """

    def tiled(cond: Conditioning) -> Denoise:
        if cond.concat is None and not split:
            denoisers = [bind(cond)] * len(windows)  # one set of keys and values serves all
        else:
            denoisers = [bind(_cut(cond, k, len(windows), window, split)) for k, window in enumerate(windows)]
        return _Tiled(denoisers, windows, shape)

    return tiled


class _Tiled:
    """Denoises window by window and blends; it tells the prediction of what it binds."""

    def __init__(self, denoisers: Sequence[Denoise], windows: Sequence[Window], shape: tuple[int, int]) -> None:
        self._denoisers, self._windows, self._shape = denoisers, windows, shape
        self._shares: dict[torch.device, list[Tensor]] = {}
        first: object = denoisers[0]
        if isinstance(first, Predicting):
            self.prediction = first.prediction

    def __call__(self, x: Tensor, level: Level[float]) -> Tensor:
        if x.device not in self._shares:
            self._shares[x.device] = weights(self._windows, self._shape, x.device)
        return blended(
            self._windows,
            self._shares[x.device],
            lambda k, window: self._denoisers[k](window.of(x).contiguous(), level),
            torch.zeros_like(x),
        )


def _cut(cond: Conditioning, k: int, count: int, window: Window, split: bool) -> Conditioning:
    """The k-th window's part of a conditioning."""
    if cond.concat is not None:
        cond = replace(cond, concat=window.of(cond.concat).contiguous())
    if not split or cond.context is None:
        return cond
    mask = cond.context_mask
    return replace(
        cond,
        context=cond.context.chunk(count, dim=1)[k],
        context_mask=None if mask is None else mask.chunk(count, dim=1)[k],
    )


def _one_after_the_other(records: Sequence[Conditioning]) -> Conditioning:
    """The first record with the tokens of all."""
    contexts = [record.context for record in records if record.context is not None]
    masks = [record.context_mask for record in records if record.context_mask is not None]
    return replace(
        records[0],
        context=torch.cat(contexts, dim=1) if contexts else None,
        context_mask=torch.cat(masks, dim=1) if masks else None,
    )
