r"""Image conditioning with OpenCLIP's image tower: variations of an image, image prompts.

===============  ===============  ==========================================================================
output           shape            used by
===============  ===============  ==========================================================================
``projected``    (B, E)           :math:`e`, a vector: Stable Diffusion unCLIP (without its noise augmentation)
``embedding``    (B, 1, E)        :math:`e / |e|` as one token: neighbours of retrieval-augmented models
``penultimate``  (B, 1 + N, D)    the last layer but one, class token and patches: image prompts that keep detail
===============  ===============  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from ldmkit.conditioners.inputs import real
from ldmkit.conditioning import Batch, Conditioning
from open_clip.transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from ldmkit_openclip.architecture import described, fill, image_half, published, read
from ldmkit_openclip.pixels import normalised, statistics

CONTEXTS = ("embedding", "penultimate")
VECTORS = ("projected",)


class OpenClipImage(nn.Module):
    """Encodes images with the image tower of an OpenCLIP model.

    The image is resized to the tower's size, without cropping, and normalised.

    Args:
        architecture: a name of OpenCLIP's table, such as ``ViT-H-14``, or such an entry in OpenCLIP's words.
        source: the weights: a file of OpenCLIP, or a published tag such as ``laion2b_s32b_b79k``. They are read once
            and become part of the model. None: random weights.
        key: the batch key of the images.
        context: what fills the context, one of the table above; None: nothing.
        vector: what fills the vector, one of the table above; None: nothing.
        mean: of the images that CLIP was trained on, per channel, in [0, 1]. None: as recorded with the tag, else
            OpenAI's.
        std: their standard deviation. None: likewise.
        frozen: keep CLIP as it is: no gradients, and eval mode whatever the model's mode.

    Reads ``key``: (B, 3, H, W) floating point in [-1, 1], of any size. Its null is zeros.

    Raises:
        ValueError: an unknown output or none, one that the tower does not have, an architecture that is no CLIP, or a
            ``source`` that is neither a file nor a tag; in a call, another shape or integers.
        CheckpointError: ``source`` holds other weights.

    Source: Cherti et al. 2023 (arXiv 2212.07143); Ramesh et al. 2022 (arXiv 2204.06125), section 3.1.
    """

    filled_by: tuple[str, ...] = ("source",)

    def __init__(
        self,
        architecture: str | Mapping[str, Any],
        *,
        source: str | None = None,
        key: str = "image",
        context: Literal["embedding", "penultimate"] | None = None,
        vector: Literal["projected"] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if (context, vector) == (None, None) or context not in (None, *CONTEXTS) or vector not in (None, *VECTORS):
            raise ValueError(
                f"conditioner 'openclip-image' gives a context of {CONTEXTS}, a vector of {VECTORS}, or both; got "
                f"{context=} and {vector=}"
            )
        self.architecture = architecture
        self.source = source
        self.key = key
        self.context = context
        self.vector = vector
        self.frozen = frozen
        self.visual = image_half(architecture, "openclip-image")
        if context == "penultimate" and not isinstance(self.visual, VisionTransformer):
            raise ValueError(
                f"conditioner 'openclip-image': {type(self.visual).__name__} has no class token and patches to give as "
                "context 'penultimate': choose an architecture named ViT, or another context"
            )
        if source is not None:
            halves = read(architecture, source, "openclip-image")
            mine = {name.removeprefix("visual."): value for name, value in halves.items() if name.startswith("visual.")}
            fill(self.visual, mine, source, "openclip-image")
            mean, std = statistics(mean, std, published(architecture, source, "openclip-image"))
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)
        embedding: int = described(architecture, [], "openclip-image")["embed_dim"]
        sizes = {"penultimate": self.visual.ln_post.weight.shape[0]} if context == "penultimate" else {}
        asked = {"context": context, "vector": vector}
        self.reads: tuple[str, ...] = (key,)
        self.provides: Mapping[str, int] = {slot: sizes.get(name, embedding) for slot, name in asked.items() if name}
        self._freeze()
        self.train()

    def forward(self, batch: Batch) -> Conditioning:
        """Encode the images."""
        size = self.visual.image_size
        square = (size, size) if isinstance(size, int) else (size[0], size[1])
        image = real(batch, self.key, ("B", 3, "H", "W"), "openclip-image")
        like = next(self.visual.parameters())
        x = normalised(image.to(like.device), square, *statistics(self.mean, self.std, {})).to(like.dtype)
        if self.context != "penultimate":
            projected = self.visual(x)
            outputs = {"projected": projected, "embedding": F.normalize(projected, dim=-1)[:, None]}
        else:
            before = [len(self.visual.transformer.resblocks) - 2]
            states = self.visual.forward_intermediates(x, before, output_fmt="NLC", output_extra_tokens=True)
            tokens = [*states["image_intermediates_prefix"], *states["image_intermediates"]]
            outputs = {"projected": states["image_features"], "penultimate": torch.cat(tokens, dim=1)}
        return Conditioning(context=outputs.get(self.context or ""), vector=outputs.get(self.vector or ""))

    def null(self, batch: Batch) -> Conditioning:
        """Zeros of the same shape."""
        image = real(batch, self.key, ("B", 3, "H", "W"), "openclip-image")
        like = next(self.visual.parameters())
        tokens = len(self.visual.positional_embedding) if self.context == "penultimate" else 1
        shapes = {"context": (len(image), tokens), "vector": (len(image),)}
        return Conditioning(**{slot: like.new_zeros(*shapes[slot], size) for slot, size in self.provides.items()})

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for what is frozen."""
        return super().train(mode and not self.frozen)

    def _freeze(self) -> None:
        """No gradients for what is frozen, nor for what no output depends on, which distributed training would miss."""
        if self.frozen:
            self.requires_grad_(False)
        if self.vector is None and self.context == "penultimate":
            for unused in (self.visual.transformer.resblocks[-1], self.visual.ln_post):
                unused.requires_grad_(False)
            self.visual.proj.requires_grad_(False)
