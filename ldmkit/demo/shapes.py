"""Five bundled models of shape scenes, one per condition: text, layout, semantic map, small image, masked image.

Each is a few megabytes and of 32 x 32 pixels, trained by :mod:`ldmkit.demo.train_shapes` on
:class:`ldmkit.data.ShapeScenes` and measured by :mod:`ldmkit.demo.evaluate_shapes`; ``shapes.json`` beside the files
says how and with what result. They share one first stage. The text model needs the plug-in ldmkit-transformers.
"""

from collections.abc import Mapping
from pathlib import Path

from ldmkit.data.scenes import CLASSES, COLOURS, SHAPES
from ldmkit.parts import Part, Recipe, Source

HERE = Path(__file__).parent
RECORD = HERE / "shapes.json"
SIDE = 32
FACTOR = 4
WIDTH = 64
LABELS = ("background", *CLASSES)

FIRST_STAGE = Part(
    "kl",
    {
        "channels": 4,
        "base_channels": 32,
        "channel_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "resolution": SIDE,
    },
)
UNET: Mapping[str, object] = {
    "channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 1],
    "num_res_blocks": 1,
    "attention_resolutions": [1, 2],
    "num_heads": 4,
}
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "a", "an", "and", "also", "on", "at", "in", "the", "of"),
    *("with", "behind", "background", "picture", "nothing", "small", "little", "tiny", "large", "big", "huge"),
    *("top", "middle", "bottom", "left", "center", "right", "black", "navy", "brown"),
    *COLOURS,
    *SHAPES,
)
"""The vocabulary of the captions, for BERT's tokenizer."""

SOURCES: Mapping[str, Source] = {
    "text": Source(
        Part(
            "bert-text@ldmkit-transformers",
            {"width": WIDTH, "depth": 2, "heads": 4, "head_width": 16, "length": 48, "vocabulary": len(WORDS)},
        ),
        drop=0.1,
    ),
    "layout": Source(
        Part(
            "layout",
            {
                "classes": len(CLASSES),
                "width": WIDTH,
                "depth": 2,
                "tokens": 400,
                "max_objects": 3,
                "heads": 4,
                "head_width": 16,
                "names": list(CLASSES),
            },
        ),
        drop=0.1,
    ),
    "semantic": Source(
        Part("semantic-map", {"classes": len(LABELS), "channels": 8, "stages": 2, "names": list(LABELS)}), guided=False
    ),
    "super-resolution": Source(Part("low-res"), guided=False),
    "inpainting": Source(Part("masked-image", {"channels": 4}), guided=False),
}
READS = {"text": "context", "layout": "context", "semantic": 8, "super-resolution": 3, "inpainting": 5}
NAMES = tuple(SOURCES)
TASKS = {
    "text": "text-to-image",
    "layout": "layout-to-image",
    "semantic": "semantic-synthesis",
    "super-resolution": "super-resolution",
    "inpainting": "inpainting",
}
VIEWS = {
    "text": "prompt",
    "layout": "boxes",
    "semantic": "segmentation",
    "super-resolution": "low_res",
    "inpainting": "mask_image",
}
"""The view of a scene that a model is conditioned on."""
KEYWORDS = {"low_res": "image"}
"""What a task calls a view that it names otherwise."""
FIGURES = {
    "text": ("caption", "object_f1", "binding_error"),
    "layout": ("layout_iou", "object_f1"),
    "semantic": ("mean_iou", "object_f1"),
    "super-resolution": ("psnr_db", "exact", "low_res_error"),
    "inpainting": ("psnr_db", "object_f1", "known_region_error"),
}
"""What tells how well a condition is heeded: see :class:`ldmkit.data.fidelity.Fidelity`."""


def file(name: str) -> Path:
    """Where a bundled model is.

    Raises:
        KeyError: no such model; the names are ``NAMES``.
    """
    if name not in SOURCES:
        raise KeyError(f"the models of shape scenes are {', '.join(NAMES)}, got {name!r}")
    return HERE / f"shapes-{name}.safetensors"


def shapes(name: str) -> Recipe:
    """The composition of one of the models.

    Raises:
        KeyError: no such model; the names are ``NAMES``.
    """
    file(name)
    reads = READS[name]
    told = {"context_dim": WIDTH} if reads == "context" else {"concat_channels": reads}
    return Recipe(
        first_stage=FIRST_STAGE,
        backbone=Part("unet", {**UNET, **told}),
        process=Part("vp", {"betas": "cosine"}),
        prediction="v",
        sources={"condition": SOURCES[name]},
    )
