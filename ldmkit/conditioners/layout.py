"""Layout conditioning: objects with a class and a place, as tokens, through a transformer trained with the model.

    boxes or points -> tokens (:mod:`ldmkit.conditioners.layout_tokens`) -> transformer -> context (B, L, D)

A layout whose object slots are all padding is the null; it keeps the crop tokens, which say what part of the picture is
asked for and not what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldmkit.conditioners.inputs import class_names
from ldmkit.conditioners.layout_tokens import (
    FULL,
    Box,
    LayoutObject,
    LayoutTokenizer,
    Point,
    Region,
    Vocabulary,
    as_object,
    part_of,
)
from ldmkit.conditioners.text import TokenTransformer
from ldmkit.conditioning import Batch, Conditioning

KINDS: Mapping[str, type[LayoutObject]] = {"boxes": Box, "points": Point}
Crops = Tensor | Sequence[Region | None] | None


class Layout(nn.Module):
    """Conditions on a layout of boxes or of centre points.

    Args:
        classes: K, the number of object classes.
        width: D, the width of the context.
        depth: attention and feed-forward pairs of the transformer.
        objects: what a layout consists of and the batch key that holds it, ``boxes`` or ``points``.
        tokens: V, the size of the vocabulary.
        max_objects: slots for objects.
        crop_tokens: whether two tokens tell the crop; without them objects are told in the crop's coordinates.
        flags: what an object's token tells beside its class: names out of ``group, occluded, depiction, inside``.
        heads: attention heads.
        head_width: width of one head.
        names: the classes' names, one each; they travel with the model.

    Reads ``boxes``: per image a sequence of :class:`Box` or of tuples ``(label, x0, y0, x1, y1)``; or ``points``: per
    image a sequence of :class:`Point` or of tuples ``(label, x, y)``. Coordinates lie in [0, 1] of the picture; a tuple
    may end in its flags. Reads ``crop`` where the batch has it: a (B, 4) tensor, or per image (x0, y0, x1, y1) in
    [0, 1] of the picture or None; where it is missing the whole picture is shown.

    Raises:
        ValueError: a vocabulary too small, sizes below 1 or another number of names than classes; in a call, a
            layout that the tokenizer refuses, with the image's number.

    Source: arXiv 2112.10752, appendix E.2.1 (8192 tokens, 30 boxes, two crop tokens, D = 512, depth 16).
    """

    def __init__(
        self,
        classes: int,
        width: int,
        depth: int,
        objects: Literal["boxes", "points"] = "boxes",
        tokens: int = 8192,
        max_objects: int = 30,
        crop_tokens: bool = True,
        flags: Sequence[str] = (),
        heads: int = 8,
        head_width: int = 64,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if objects not in KINDS:
            raise ValueError(f"conditioner 'layout' reads one of {list(KINDS)}, got objects = {objects!r}")
        self.classes = classes
        self.width = width
        self.depth = depth
        self.objects = objects
        self.tokens = tokens
        self.max_objects = max_objects
        self.crop_tokens = crop_tokens
        self.flags = tuple(flags)
        self.heads = heads
        self.head_width = head_width
        self.names = class_names(names, classes, "layout")
        self.reads: tuple[str, ...] = (objects,)
        self.also_reads: tuple[str, ...] = ("crop",)
        self.provides: Mapping[str, int] = {"context": width}
        vocabulary = Vocabulary(classes, tokens, self.flags)
        self.tokenizer = LayoutTokenizer(KINDS[objects], vocabulary, max_objects, crop_tokens)
        self.transformer = TokenTransformer(tokens, self.tokenizer.length, width, depth, heads, head_width)

    def forward(self, batch: Batch) -> Conditioning:
        """Context of shape (B, L, D), L the length of the tokenizer's sequences."""
        return self._encoded(batch[self.objects], batch.get("crop"))

    def null(self, batch: Batch) -> Conditioning:
        """No objects, the same crops."""
        return self._encoded([()] * len(batch[self.objects]), batch.get("crop"))

    def placed(self, batch: Batch, region: Region) -> dict[str, Any]:
        """What changes in the batch for a part of the picture: the objects are the same, the crop is that part of it.

        Args:
            batch: of the whole picture.
            region: (x0, y0, x1, y1) in [0, 1] of what ``batch`` asks for.
        """
        crops = _regions(batch.get("crop"), len(batch[self.objects]))
        return {"crop": [part_of(crop, region) for crop in crops]}

    def _encoded(self, layouts: Sequence[Sequence[LayoutObject | Sequence[Any]]], crops: Crops) -> Conditioning:
        sequences = []
        for image, (layout, crop) in enumerate(zip(layouts, _regions(crops, len(layouts)), strict=True)):
            try:
                objects = [as_object(self.tokenizer.kind, item) for item in layout]
                sequences.append(self.tokenizer.encode(objects, crop))
            except ValueError as error:
                raise ValueError(f"conditioner 'layout', image {image} of the batch: {error}") from error
        tokens = torch.tensor(sequences, device=self.transformer.token_emb.weight.device)
        return Conditioning(context=self.transformer(tokens))


def _regions(crops: Crops, count: int) -> list[Region]:
    if crops is None:
        return [FULL] * count
    listed = crops.tolist() if isinstance(crops, Tensor) else crops
    if len(listed) != count:
        raise ValueError(f"conditioner 'layout' reads one crop per image, got {len(listed)} crops for {count} layouts")
    return [FULL if crop is None else tuple(crop) for crop in listed]
