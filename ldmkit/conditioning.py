r"""What a backbone may be told beside the state and its level.

A :class:`Conditioning` is a closed record of five slots,

===============  ==============  ============================================================================
slot             shape           read by
===============  ==============  ============================================================================
``context``      (B, L, D)       cross-attention
``context_mask`` (B, L) bool     cross-attention; True = attend. None means all ones
``vector``       (B, E)          the embedding that is added to the time embedding
``label``        (B,) int64      the backbone's own label embedding
``concat``       (B, C, h, w)    joined to the state by channels, never rescaled with it
===============  ==============  ============================================================================

and a :class:`Conditioner` makes one from a batch. Several conditioners are joined slot by slot (:func:`join`);
:class:`Joint` holds a model's conditioners as *named sources* with one dropout rate each and the list of those that
guidance drops. Nothing here computes a network or draws randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ldmkit.errors import BatchError, CompositionError

SLOTS = ("context", "vector", "label", "concat")
LATENT = "_latent"
Batch = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What one batch of states is conditioned on; every slot is optional.

    Args:
        context: (B, L, D) tokens for cross-attention.
        context_mask: (B, L) bool, True where the backbone may attend; None means everywhere.
        vector: (B, E) features added to the time embedding.
        label: (B,) int64 class indices for a backbone with its own label embedding.
        concat: (B, C, h, w) channels appended to the state.

    Raises:
        ValueError: a slot has the wrong rank, a label is not int64, a mask has no context or is not bool, or the
            batch sizes differ.
    """

    context: Tensor | None = None
    context_mask: Tensor | None = None
    vector: Tensor | None = None
    label: Tensor | None = None
    concat: Tensor | None = None

    def __post_init__(self) -> None:
        ranks = {"context": 3, "context_mask": 2, "vector": 2, "label": 1, "concat": 4}
        for name, value in self.filled().items():
            if value.ndim != ranks[name]:
                raise ValueError(f"conditioning slot '{name}' needs rank {ranks[name]}, got shape {tuple(value.shape)}")
        if self.label is not None and self.label.dtype != torch.int64:
            raise ValueError(f"conditioning slot 'label' needs int64 class indices, got {self.label.dtype}")
        if self.context_mask is not None:
            self._check_mask(self.context_mask)
        sizes = {name: value.shape[0] for name, value in self.filled().items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"conditioning slots differ in batch size: {sizes}")

    def _check_mask(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise ValueError(f"conditioning slot 'context_mask' needs bool (True = attend), got {mask.dtype}")
        if self.context is None or mask.shape != self.context.shape[:2]:
            given = None if self.context is None else tuple(self.context.shape)
            raise ValueError(f"context_mask of shape {tuple(mask.shape)} does not fit context of shape {given}")

    def filled(self) -> dict[str, Tensor]:
        """The slots that hold a tensor, by name."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}

    @property
    def batch_size(self) -> int | None:
        """B, or None for an empty record, which fits any batch."""
        return next((value.shape[0] for value in self.filled().values()), None)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """Apply one function to every slot that is filled."""
        return replace(self, **{name: function(value) for name, value in self.filled().items()})

    def to(self, device: torch.device) -> Conditioning:
        """The same record on another device."""
        return self.map(lambda value: value.to(device))


def join(parts: Iterable[Conditioning]) -> Conditioning:
    """Join records slot by slot, in the order given.

    Context is joined by tokens (equal D; a missing mask becomes ones), vector by E, concat by C.

    Raises:
        CompositionError: two labels, or context of two widths.
    """
    records = list(parts)
    labels = [part.label for part in records if part.label is not None]
    if len(labels) > 1:
        raise CompositionError(
            f"{len(labels)} conditioners provide a label and a backbone reads one: "
            "give all but one as context or vector"
        )
    context, mask = _join_context([part for part in records if part.context is not None])
    return Conditioning(
        context=context,
        context_mask=mask,
        vector=_cat([part.vector for part in records]),
        label=labels[0] if labels else None,
        concat=_cat([part.concat for part in records]),
    )


def batch(records: Sequence[Conditioning]) -> Conditioning:
    """Stack records along the batch, in the order given: guidance binds ``batch([uncond, cond])`` once.

    Context of unequal L is padded with zeros that a mask hides; a missing mask becomes ones when another has one.

    Raises:
        ValueError: the records do not fill the same slots.
    """
    slots = [frozenset(record.filled()) - {"context_mask"} for record in records]
    if len(set(slots)) > 1:
        raise ValueError(f"records to batch fill different slots: {[sorted(names) for names in slots]}")
    records = padded_alike(records)
    names = records[0].filled() if records else {}
    return Conditioning(**{name: torch.cat([getattr(record, name) for record in records]) for name in names})


def where(keep: Tensor, cond: Conditioning, null: Conditioning) -> Conditioning:
    """Per sample, ``cond`` where ``keep`` and ``null`` elsewhere: conditioning dropout.

    Args:
        keep: (B,) bool.
        cond: the conditioning, B samples.
        null: the same slots without information; unequal L is padded.
    """
    cond, null = padded_alike([cond, null])
    if cond.filled().keys() != null.filled().keys():
        raise ValueError(f"null fills the slots {sorted(null.filled())}, the conditioning {sorted(cond.filled())}")
    chosen = {}
    for name, value in cond.filled().items():
        chosen[name] = torch.where(keep.view(-1, *[1] * (value.ndim - 1)), value, getattr(null, name))
    return Conditioning(**chosen)


def _cat(values: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    return present[0] if len(present) == 1 else torch.cat(present, dim=1)


def _join_context(parts: Sequence[Conditioning]) -> tuple[Tensor | None, Tensor | None]:
    contexts = [cast(Tensor, part.context) for part in parts]
    widths = [context.shape[2] for context in contexts]
    if len(set(widths)) > 1:
        raise CompositionError(
            f"conditioners give context of widths {widths}; tokens can be joined only at equal width: "
            "project them to the backbone's context_dim"
        )
    masks = [part.context_mask for part in parts]
    if all(mask is None for mask in masks):
        return _cat(contexts), None
    return _cat(contexts), _cat([_mask_of(part) for part in parts])


def _mask_of(record: Conditioning) -> Tensor:
    if record.context_mask is not None:
        return record.context_mask
    context = cast(Tensor, record.context)
    return torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)


def padded_alike(records: Sequence[Conditioning]) -> list[Conditioning]:
    """Give records with context one length and, where any needs one, a mask."""
    lengths = {record.context.shape[1] for record in records if record.context is not None}
    masked = any(record.context_mask is not None for record in records)
    if len(lengths) <= 1 and not masked:
        return list(records)
    return [_padded(record, max(lengths)) for record in records]


def _padded(record: Conditioning, length: int) -> Conditioning:
    if record.context is None:
        return record
    missing = length - record.context.shape[1]
    context = nn.functional.pad(record.context, (0, 0, 0, missing))
    return replace(record, context=context, context_mask=nn.functional.pad(_mask_of(record), (0, missing)))


@runtime_checkable
class Conditioner(Protocol):
    """Turns a batch into a :class:`Conditioning`; any ``nn.Module`` with these four names is one.

    ``reads`` lists the batch keys; a key that ends in ``_latent`` is filled by the model with its own first stage.
    ``provides`` maps each slot to its size: the width of ``context`` or ``vector``, the channels of ``concat``, the
    number of classes of ``label``. ``null(batch)`` fills the same slots with the same shapes and no information.
    """

    reads: tuple[str, ...]
    provides: Mapping[str, int]

    def __call__(self, batch: Batch, /) -> Conditioning: ...

    def null(self, batch: Batch, /) -> Conditioning: ...


@runtime_checkable
class AlsoReads(Protocol):
    """A conditioner that uses further batch keys where they are given."""

    also_reads: tuple[str, ...]


@runtime_checkable
class MayLackNull(Protocol):
    """A conditioner that has a null only if it was built with one."""

    @property
    def has_null(self) -> bool: ...


class Joint(nn.Module):
    """A model's conditioners as named sources.

    Args:
        sources: name -> conditioner, in the order in which tokens and channels are joined.
        drop: name -> the share of training samples whose source is replaced by its null; 0 where not named.
        guided: the sources that guidance drops in its unconditional half. None: all of them.

    Raises:
        CompositionError: two sources provide a label or context of unequal width, or ``drop`` or ``guided`` names a
            source that does not exist.
        ValueError: a rate outside [0, 1].
    """

    def __init__(
        self,
        sources: Mapping[str, Conditioner],
        drop: Mapping[str, float] | None = None,
        guided: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        for name, source in sources.items():
            _check_conditioner(name, source)
            _check_rate(name, source, (drop or {}).get(name, 0.0))
        self.sources = nn.ModuleDict(cast(Mapping[str, nn.Module], sources))
        self.drop = {name: float((drop or {}).get(name, 0.0)) for name in sources}
        self.guided = tuple(sources) if guided is None else tuple(guided)
        for name in (*(drop or {}), *self.guided):
            if name not in self.sources:
                raise CompositionError(f"there is no source '{name}'; the sources are {list(sources)}")
        self.provides = _joined_provides(sources)
        self.reads = tuple(dict.fromkeys(key for source in sources.values() for key in source.reads))

    def conditioners(self) -> dict[str, Conditioner]:
        """The sources by name, typed as conditioners."""
        return cast(dict[str, Conditioner], dict(self.sources.items()))

    def forward(self, batch: Batch, drop: Collection[str] = ()) -> Conditioning:
        """Condition on a batch, with the sources named in ``drop`` replaced by their null."""
        self.check(batch)
        return join(
            self._once(source.null if name in drop else source, source, batch)
            for name, source in self.conditioners().items()
        )

    def _once(self, call: Callable[[Batch], Conditioning], source: Conditioner, batch: Batch) -> Conditioning:
        """Condition on the batch, where samples that are told the same words are encoded once.

        Words are cheap to compare and dear to encode; in training every sample keeps its own pass, and its own dropout.
        """
        words = [batch[key] for key in source.reads]
        if self.training or not all(_is_words(value) for value in words):
            return call(batch)
        rows = list(zip(*words, strict=True))
        first = {row: i for i, row in reversed(list(enumerate(rows)))}
        if not words or len(first) == len(rows) or _also_given(source, batch):
            return call(batch)
        chosen = sorted(first.values())
        record = call({**batch, **{key: [batch[key][i] for i in chosen] for key in source.reads}})
        place = {row: chosen.index(i) for row, i in first.items()}
        return record.map(lambda value: value[[place[row] for row in rows]])

    def null(self, batch: Batch) -> Conditioning:
        """The unconditional half of guidance: the guided sources are null, the others stay."""
        return self.forward(batch, drop=self.guided)

    def untold(self, batch: Batch) -> list[str]:
        """The guided sources of which a batch says nothing: beside a negative prompt they stay null."""
        keys = {*batch, *(f"{key}{LATENT}" for key in batch)}
        sources = self.conditioners()
        return [name for name in self.guided if not keys & {*sources[name].reads}]

    def dropped(self, batch: Batch, keep: Mapping[str, Tensor]) -> Conditioning:
        """Condition for training: per source and sample the condition, or its null where ``keep`` is False.

        Args:
            batch: what the sources read.
            keep: source name -> (B,) bool; a source that is not named is kept whole.
        """
        self.check(batch)
        parts = []
        for name, source in self.conditioners().items():
            part = source(batch)
            parts.append(where(keep[name], part, source.null(batch)) if name in keep else part)
        return join(parts)

    def check(self, batch: Batch, *, encoded: bool = True) -> None:
        """Refuse a batch that lacks a key, naming who reads it.

        Args:
            batch: what the sources read.
            encoded: False before the model has encoded what ends in ``_latent``: the image itself is then enough.

        Raises:
            BatchError: a source reads a key that the batch does not have.
        """
        for name, source in self.conditioners().items():
            missing = [
                key
                for key in source.reads
                if key not in batch and (encoded or not key.endswith(LATENT) or key.removesuffix(LATENT) not in batch)
            ]
            if missing:
                raise BatchError(
                    f"source '{name}' ({type(source).__name__}) reads {missing}, which the batch does not have; "
                    f"it has {sorted(batch)}"
                )

    def may_read(self) -> list[str]:
        """Every key that some source reads or may read, and the images of those that end in ``_latent``."""
        keys = [*self.reads]
        for source in self.sources.values():
            keys += source.also_reads if isinstance(source, AlsoReads) else ()
        images = [key.removesuffix(LATENT) for key in keys if key.endswith(LATENT)]
        return list(dict.fromkeys([*keys, *images]))


def _is_words(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _also_given(source: Conditioner, batch: Batch) -> bool:
    return isinstance(source, AlsoReads) and any(key in batch for key in source.also_reads)


def _check_conditioner(name: str, source: object) -> None:
    if not name.isidentifier() or name in dir(nn.ModuleDict):
        raise ValueError(
            f"a source cannot be named {name!r}: the name is part of its tensors' names, so it is a Python identifier "
            "that nn.ModuleDict does not use itself"
        )
    if not isinstance(source, nn.Module) or not isinstance(source, Conditioner):
        raise TypeError(
            f"source '{name}' is {type(source).__name__}; a conditioner is an nn.Module with reads, provides, "
            "forward(batch) and null(batch)"
        )
    unknown = [slot for slot in source.provides if slot not in SLOTS]
    if unknown:
        raise CompositionError(f"source '{name}' provides unknown slots {unknown}; the slots are {list(SLOTS)}")


def _check_rate(name: str, source: Conditioner, rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"drop rate of source '{name}' must lie in [0, 1], got {rate}")
    if rate and isinstance(source, MayLackNull) and not source.has_null:
        raise CompositionError(
            f"source '{name}' ({type(source).__name__}) is to be dropped for {rate:.0%} of the samples and was built "
            "without a null: build it with one, or set drop to 0"
        )


def _joined_provides(sources: Mapping[str, Conditioner]) -> dict[str, int]:
    joined: dict[str, int] = {}
    owner: dict[str, str] = {}
    for name, source in sources.items():
        for slot, size in source.provides.items():
            if slot == "label" and slot in joined:
                raise CompositionError(
                    f"sources '{owner[slot]}' and '{name}' both provide a label and a backbone reads one: "
                    "give one of them as context or vector"
                )
            if slot == "context" and joined.get(slot, size) != size:
                raise CompositionError(
                    f"source '{owner[slot]}' gives context of width {joined[slot]}, source '{name}' of width {size}; "
                    "tokens can be joined only at equal width: project one of them"
                )
            joined[slot] = joined.get(slot, 0) + size if slot in ("vector", "concat") else size
            owner.setdefault(slot, name)
    return joined
