r"""Image conditioning with CLIP's image tower: variations of an image, retrieved neighbours, image prompts.

.. math:: h_0 = \mathrm{LN}([\mathrm{class}, \mathrm{patches}] + P), \qquad h_n = \mathrm{layer}_n(h_{n-1}), \qquad
          p = \mathrm{LN}(h_{N,\mathrm{class}}), \qquad e = W p

===============  ===============  ====================================================================
output           shape            used by
===============  ===============  ====================================================================
``embedding``    (B, 1, E)        :math:`e / |e|` as one token: neighbours of retrieval-augmented LDM
``last``         (B, 1 + N, D)    :math:`h_N`, the class token and the patches
``penultimate``  (B, 1 + N, D)    :math:`h_{N-1}`: image prompts that keep detail
``pooled``       (B, D)           :math:`p`, a vector
``projected``    (B, E)           :math:`e`, a vector: image variations (without their noise augmentation)
===============  ===============  ====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, cast

import torch
from ldmkit.conditioners.inputs import real
from ldmkit.conditioning import Batch, Conditioning
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from ldmkit_transformers.pretrained import description, network

CONTEXTS = ("embedding", "last", "penultimate")
VECTORS = ("pooled", "projected")
PROJECTION = "visual_projection.weight"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipImage(nn.Module):
    """Encodes images with the image tower of a pretrained CLIP.

    The image is resized to the tower's square, without cropping, and normalised.

    Args:
        source: a folder that ``save_pretrained`` wrote, or a hub id such as ``openai/clip-vit-large-patch14``. It is
            read once: weights and configuration become part of the model.
        config: instead, the architecture in the words of ``CLIPVisionConfig``, for random weights.
        key: the batch key of the images.
        context: what fills the context, one of the table above; None: nothing.
        vector: what fills the vector, one of the table above; None: nothing.
        mean: of the images that CLIP was trained on, per channel, in [0, 1].
        std: their standard deviation.
        frozen: keep CLIP as it is: no gradients, and eval mode whatever the model's mode.

    Reads ``key``: (B, C, H, W) floating point in [-1, 1], of any size. Its null is zeros.

    Raises:
        ValueError: an unknown output or none, both or neither of ``source`` and ``config``, or unknown words in
            ``config``; in a call, another shape or integers.
        CheckpointError: ``source`` holds another network, or no projection where one is asked for.

    Source: Radford et al. 2021 (arXiv 2103.00020); the resizing as in ``FrozenClipImageEmbedder`` of the original, but
    antialiased, as CLIP's own preprocessing is.
    """

    filled_by: tuple[str, ...] = ("source",)

    def __init__(
        self,
        source: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        key: str = "image",
        context: Literal["embedding", "last", "penultimate"] | None = None,
        vector: Literal["pooled", "projected"] | None = None,
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if (context, vector) == (None, None) or context not in (None, *CONTEXTS) or vector not in (None, *VECTORS):
            raise ValueError(
                f"conditioner 'clip-image' gives a context of {CONTEXTS}, a vector of {VECTORS}, or both; got "
                f"{context=} and {vector=}"
            )
        self.source = source
        self.key = key
        self.context = context
        self.vector = vector
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.frozen = frozen
        projects = context == "embedding" or vector == "projected"
        spare = () if projects else (PROJECTION,)
        model = network(CLIPVisionModelWithProjection, source, config, "clip-image", unused=spare)
        self.config = description(model) if config is None else dict(config)
        self.size: int = model.config.image_size
        self.patch: int = model.config.patch_size
        self.channels: int = model.config.num_channels
        self.transformer = nn.ModuleDict({"vision_model": model.vision_model})
        if projects:
            self.transformer["visual_projection"] = model.visual_projection
        sizes = {"embedding": model.config.projection_dim, "projected": model.config.projection_dim}
        asked = {"context": context, "vector": vector}
        width = model.config.hidden_size
        self.reads: tuple[str, ...] = (key,)
        self.provides: Mapping[str, int] = {slot: sizes.get(name, width) for slot, name in asked.items() if name}
        self._freeze()
        self.train()

    def forward(self, batch: Batch) -> Conditioning:
        """Encode the images."""
        image = real(batch, self.key, ("B", self.channels, "H", "W"), "clip-image")
        tower = cast(CLIPVisionModel, self.transformer["vision_model"])
        weight = tower.post_layernorm.weight
        x = normalised(image.to(weight.device), (self.size, self.size), self.mean, self.std)
        before, last = hidden_states(tower, x.to(weight.dtype))
        pooled = tower.post_layernorm(last[:, 0])
        outputs = {"last": last, "penultimate": before, "pooled": pooled}
        if "visual_projection" in self.transformer:
            outputs["projected"] = self.transformer["visual_projection"](pooled)
            outputs["embedding"] = F.normalize(outputs["projected"], dim=-1)[:, None]
        return Conditioning(context=outputs.get(self.context or ""), vector=outputs.get(self.vector or ""))

    def null(self, batch: Batch) -> Conditioning:
        """Zeros of the same shape."""
        image = real(batch, self.key, ("B", self.channels, "H", "W"), "clip-image")
        like = cast(CLIPVisionModel, self.transformer["vision_model"]).post_layernorm.weight
        tokens = 1 if self.context == "embedding" else 1 + (self.size // self.patch) ** 2
        shapes = {"context": (len(image), tokens), "vector": (len(image),)}
        return Conditioning(**{slot: like.new_zeros(*shapes[slot], size) for slot, size in self.provides.items()})

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for what is frozen."""
        return super().train(mode and not self.frozen)

    def _freeze(self) -> None:
        """No gradients for what is frozen, nor for what no output depends on, which distributed training would miss."""
        tower = cast(CLIPVisionModel, self.transformer["vision_model"])
        if self.frozen:
            self.requires_grad_(False)
        if self.vector is None and self.context in ("last", "penultimate"):
            tower.post_layernorm.requires_grad_(False)
        if self.vector is None and self.context == "penultimate":
            tower.encoder.layers[-1].requires_grad_(False)


def normalised(image: Tensor, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What a classifier reads of an image: resized, and ``((image + 1) / 2 - mean) / std``.

    Args:
        image: (B, C, H, W) in [-1, 1].
        size: height and width.
        mean: per channel, of images in [0, 1].
        std: per channel.

    Returns:
        (B, C, *size), float32 at least.
    """
    precise = image.to(torch.promote_types(image.dtype, torch.float32))  # torch antialiases nothing shorter
    x = F.interpolate(precise, size=size, mode="bicubic", antialias=True)
    center, spread = (torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1) for values in (mean, std))
    return ((x + 1) / 2 - center) / spread


def hidden_states(tower: CLIPVisionModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """(h of the last layer but one, h of the last layer), each (B, 1 + N, D), of what :func:`normalised` gives.

    Written out because transformers hands out inner layers through hooks, which once used cannot be pickled.
    """
    h = tower.pre_layrnorm(tower.embeddings(x))
    *first, final = tower.encoder.layers
    for layer in first:
        h = layer(h, None)
    return h, final(h, None)
