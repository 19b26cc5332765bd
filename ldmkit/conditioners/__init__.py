"""The built-in conditioners: from a batch to what a backbone is told.

============================================  ===========================  ======================
conditioner                                   reads                        provides
============================================  ===========================  ======================
:class:`~.label.ClassLabel`                   ``label``                    ``context``, ``vector``
:class:`~.label.ClassIndex`                   ``label``                    ``label``
:class:`~.text.Tokens`                        ``tokens``                   ``context``
:class:`~.layout.Layout`                      ``boxes`` or ``points``      ``context``
:class:`~.spatial.SemanticMap`                ``segmentation``             ``concat``
:class:`~.spatial.LowRes`                     ``low_res``                  ``concat``
:class:`~.spatial.MaskedImage`                ``masked_image_latent``,     ``concat``
                                              ``mask``
:class:`~.depth.Depth`                        ``depth``                    ``concat``
:class:`~.noised_low_res.NoisedLowRes`        ``low_res``,                 ``concat``, ``label``
                                              ``noise_level``
:class:`~.noised_embedding.NoisedEmbedding`   ``image_embedding``          ``vector``
:class:`~.precomputed.Precomputed`            any key                      any of the three
============================================  ===========================  ======================
"""

from ldmkit.conditioners.depth import Depth
from ldmkit.conditioners.label import ClassIndex, ClassLabel
from ldmkit.conditioners.layout import Layout
from ldmkit.conditioners.layout_picture import draw_layout
from ldmkit.conditioners.layout_tokens import Box, LayoutTokenizer, Point, Vocabulary
from ldmkit.conditioners.noised_embedding import NoisedEmbedding
from ldmkit.conditioners.noised_low_res import NoisedLowRes
from ldmkit.conditioners.precomputed import Precomputed
from ldmkit.conditioners.spatial import LowRes, MaskedImage, SemanticMap, masked_image
from ldmkit.conditioners.text import Tokens, TokenTransformer

__all__ = [
    "Box",
    "ClassIndex",
    "ClassLabel",
    "Depth",
    "Layout",
    "LayoutTokenizer",
    "LowRes",
    "MaskedImage",
    "NoisedEmbedding",
    "NoisedLowRes",
    "Point",
    "Precomputed",
    "SemanticMap",
    "TokenTransformer",
    "Tokens",
    "Vocabulary",
    "draw_layout",
    "masked_image",
]
