"""Data: what a model is trained and measured on, as records in the words of the tasks.

A degradation is ``(image (C, H, W) in [0, 1], seed) -> (C, H / f, W / f)``, a mask maker
``((H, W), seed) -> (1, H, W)`` of 0 and 1. Everything is a function of its arguments: a seed, an index, a file.
"""

from ldmkit.data.augment import CenterCrop, Chain, Flip, RandomCrop, RandomSquare, Resize, ShuffleObjects, TellCrop
from ldmkit.data.boxes import BoxFilter, coco_boxes, openimages_boxes
from ldmkit.data.captions import caption_table, sidecar_captions
from ldmkit.data.degradations import BSR, Bicubic, Box, Degradation, bsr_light
from ldmkit.data.folders import class_folders, image_folder, label_map_folders
from ldmkit.data.masks import Boxes, Frames, MaskMaker, Mixed, Strokes
from ldmkit.data.rows import Reading, Records
from ldmkit.data.shape_scenes import ShapeScenes
from ldmkit.data.shards import Shards
from ldmkit.data.streams import SplitStream, Stream
from ldmkit.data.web import web_shards

__all__ = [
    "BSR",
    "Bicubic",
    "Box",
    "BoxFilter",
    "Boxes",
    "CenterCrop",
    "Chain",
    "Degradation",
    "Flip",
    "Frames",
    "MaskMaker",
    "Mixed",
    "RandomCrop",
    "RandomSquare",
    "Reading",
    "Records",
    "Resize",
    "ShapeScenes",
    "Shards",
    "ShuffleObjects",
    "SplitStream",
    "Stream",
    "Strokes",
    "TellCrop",
    "bsr_light",
    "caption_table",
    "class_folders",
    "coco_boxes",
    "image_folder",
    "label_map_folders",
    "openimages_boxes",
    "sidecar_captions",
    "web_shards",
]
