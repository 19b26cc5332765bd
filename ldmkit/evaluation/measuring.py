"""The evaluation of a set of images, in one pass over it, by all processes there are; and of several sets in a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldmkit.evaluation.pairs import Pairs
from ldmkit.evaluation.reference import Comparison, Reference
from ldmkit.evaluation.report import Report, Sweep, surroundings
from ldmkit.evaluation.sets import Images, shares
from ldmkit.evaluation.throughput import Throughput
from ldmkit.training.parallel import gathered, rank, world
from ldmkit.training.perceptual import LPIPS

SHOWN = 32


def evaluate(
    made: Images,
    reference: Reference | None = None,
    *,
    truth: Images | None = None,
    lpips: LPIPS | None = None,
    floor: Images | None = None,
    speed: Throughput | None = None,
    batch: int = 32,
    progress: bool = True,
) -> Report:
    """Judge a set of images.

    Inside a process group all processes call it; each makes or reads its share, and all have the same report.

    Args:
        made: the set.
        reference: real images to compare the distribution with.
        truth: image by image, what ``made`` should be.
        lpips: the learned distance to the truth.
        floor: real images that are not in the reference; as many of them as of ``made`` are measured beside it, and no
            model can be expected to do better.
        speed: what :func:`ldmkit.evaluation.throughput` found, to be written into the report.
        batch: images at a time.
        progress: show a bar.

    Raises:
        ValueError: nothing to compare with, or sets that do not fit each other.
    """
    _check(made, reference, truth, lpips, floor)
    pairs = None if truth is None else Pairs(truth, lpips)
    return _measured(made, reference, pairs, _floor(reference, floor, len(made), batch), speed, batch, progress)


def sweep(
    name: str,
    values: Sequence[float],
    make: Callable[[float], Images],
    reference: Reference | None = None,
    *,
    truth: Images | None = None,
    lpips: LPIPS | None = None,
    floor: Images | None = None,
    batch: int = 32,
    progress: bool = True,
) -> Sweep:
    """Judge a set for every value of something: guidance scales, numbers of steps.

    Args:
        name: of what is varied, for the plots.
        values: of it.
        make: the set of a value; all sets have one length.
        reference: as in :func:`evaluate`, and so are the others.

    Raises:
        ValueError: no values, sets of several lengths, or as :func:`evaluate`.
    """
    sets = [make(value) for value in values]
    lengths = sorted({len(made) for made in sets})
    if len(lengths) != 1:
        raise ValueError(f"a sweep over {name} compares sets of one length, got {len(sets)} sets of lengths {lengths}")
    for made in sets:
        _check(made, reference, truth, lpips, floor)
    held_out = _floor(reference, floor, lengths[0], batch)
    reports = []
    for made in sets:
        pairs = None if truth is None else Pairs(truth, lpips)
        reports.append(_measured(made, reference, pairs, held_out, None, batch, progress))
    return Sweep(name, tuple(values), tuple(reports))


@dataclass(frozen=True)
class Floor:
    """Figures of held-out real images, and what these were."""

    figures: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def _floor(reference: Reference | None, images: Images | None, count: int, batch: int) -> Floor:
    if reference is None or images is None:
        return Floor()
    return Floor(reference.measure(images, batch, count), {"floor": {**images.facts(), "used": count}})


def _measured(
    made: Images,
    reference: Reference | None,
    pairs: Pairs | None,
    floor: Floor,
    speed: Throughput | None,
    batch: int,
    progress: bool,
) -> Report:
    """One pass over a set: each process sees its share."""
    comparison = None if reference is None else Comparison(reference, len(made))
    shown: list[tuple[int, Tensor]] = []
    with tqdm(total=len(made), unit="image", disable=not progress or rank() != 0) as bar:
        for places in shares(len(made), batch):
            images = made.read(places)
            if comparison is not None:
                comparison.update(places, images)
            if pairs is not None:
                pairs.update(places, images)
            shown += [(place, image) for place, image in zip(places, images, strict=True) if place < SHOWN]
            bar.update(min(len(places) * world(), len(made) - bar.n))
    protocol = {
        "made": made.facts(),
        **({} if reference is None else reference.facts(len(made))),
        **floor.facts,
        **({} if pairs is None else pairs.facts()),
        "values": "images rounded to 8 bits",
        "processes": world(),
        "batch": batch,
        **surroundings(),
    }
    return Report(
        figures={} if comparison is None else comparison.compute(),
        floor=floor.figures,
        pairs={} if pairs is None else pairs.compute(),
        notes=[] if reference is None else reference.notes(len(made)),
        protocol=protocol,
        speed=speed,
        shown=_sheet(shown),
    )


def _sheet(shown: list[tuple[int, Tensor]]) -> Tensor:
    """The first images, from all processes, (B, 3, H, W) in [0, 1]; those of the size of the first."""
    images = [image for _, image in sorted((one for part in gathered(shown) for one in part), key=lambda one: one[0])]
    return torch.stack([image for image in images if image.shape == images[0].shape]).float() / 255


def _check(
    made: Images, reference: Reference | None, truth: Images | None, lpips: LPIPS | None, floor: Images | None
) -> None:
    if reference is None and truth is None:
        raise ValueError("there is nothing to compare with: give a reference, a truth=, or both")
    if not len(made):
        raise ValueError("there are no images to judge")
    if truth is not None and len(truth) != len(made):
        raise ValueError(f"result i is compared with truth i: got {len(made)} results and {len(truth)} of truth")
    if lpips is not None and truth is None:
        raise ValueError("lpips= compares with a truth=, and there is none")
    if floor is not None and (reference is None or len(floor) < len(made)):
        why = "there is no reference" if reference is None else f"it has {len(floor)} images, and {len(made)} are made"
        raise ValueError(f"the floor is as many held-out real images as are made, measured like them, but {why}")
