"""Data: what a model is trained and measured on, as records in the words of the tasks.

A degradation is ``(image (C, H, W) in [0, 1], seed) -> (C, H / f, W / f)``, a mask maker
``((H, W), seed) -> (1, H, W)`` of 0 and 1. Everything is a function of its arguments: a seed, an index, a file.
"""

from ldmkit.data.degradations import BSR, Bicubic, Box, Degradation, bsr_light
from ldmkit.data.masks import Boxes, Frames, MaskMaker, Mixed, Strokes
from ldmkit.data.shape_scenes import ShapeScenes

__all__ = [
    "BSR",
    "Bicubic",
    "Box",
    "Boxes",
    "Degradation",
    "Frames",
    "MaskMaker",
    "Mixed",
    "ShapeScenes",
    "Strokes",
    "bsr_light",
]
