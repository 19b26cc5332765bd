r"""Text conditioning with OpenCLIP's text tower.

.. math:: h_0 = T[\mathrm{ids}] + P, \qquad h_n = \mathrm{layer}_n(h_{n-1}), \qquad h = \mathrm{LN}(h_N), \qquad
          e = W h_{\mathrm{end}}

Prompts have one length and attention is causal, so padding behind the end changes nothing before it; the published
models let the backbone read all tokens, padding included, and so there is no mask.

====================  ==============  ==============================================================
output                shape           used by
====================  ==============  ==============================================================
``penultimate-norm``  (B, L, D)       :math:`\mathrm{LN}(h_{N-1})`: Stable Diffusion 2
``penultimate``       (B, L, D)       :math:`h_{N-1}`: the second text encoder of SDXL
``last``              (B, L, D)       :math:`h`
``embedding``         (B, 1, E)       :math:`e / |e|` as one token: retrieval-augmented models
``projected``         (B, E)          :math:`e`, a vector: SDXL
====================  ==============  ==============================================================
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from ldmkit.conditioning import Batch, Conditioning
from torch import nn
from torch.nn import functional as F

from ldmkit_openclip.architecture import described, fill, read, text_half
from ldmkit_openclip.prompts import ClipWords, prompts_of

CONTEXTS = ("penultimate-norm", "penultimate", "last", "embedding")
VECTORS = ("projected",)


class OpenClipText(nn.Module):
    """Encodes prompts with the text tower of an OpenCLIP model.

    Args:
        architecture: a name of OpenCLIP's table, such as ``ViT-H-14``, or such an entry in OpenCLIP's words.
        source: the weights: a file of OpenCLIP, or a published tag such as ``laion2b_s32b_b79k``. They are read once
            and become part of the model. None: random weights.
        context: what fills the context, one of the table above; None: nothing.
        vector: what fills the vector, one of the table above; None: nothing.
        null_prompt: the prompt that means nothing. None: the null is zeros, as in retrieval-augmented models.
        frozen: keep CLIP as it is: no gradients, and eval mode whatever the model's mode.

    Reads ``prompt``: B strings.

    Raises:
        ValueError: an unknown output or none, an architecture that is no CLIP with CLIP's own words, or a ``source``
            that is neither a file nor a tag.
        CheckpointError: ``source`` holds other weights.

    Source: Cherti et al. 2023 (arXiv 2212.07143); ``FrozenOpenCLIPEmbedder`` of Stable Diffusion 2 (ViT-H-14), whose
    names of parameters these are (``model.*``).
    """

    reads: tuple[str, ...] = ("prompt",)
    filled_by: tuple[str, ...] = ("source",)

    def __init__(
        self,
        architecture: str | Mapping[str, Any],
        *,
        source: str | None = None,
        context: Literal["penultimate-norm", "penultimate", "last", "embedding"] | None = "penultimate-norm",
        vector: Literal["projected"] | None = None,
        null_prompt: str | None = "",
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if (context, vector) == (None, None) or context not in (None, *CONTEXTS) or vector not in (None, *VECTORS):
            raise ValueError(
                f"conditioner 'openclip-text' gives a context of {CONTEXTS}, a vector of {VECTORS}, or both; got "
                f"{context=} and {vector=}"
            )
        self.architecture = architecture
        self.source = source
        self.context = context
        self.vector = vector
        self.null_prompt = null_prompt
        self.frozen = frozen
        self.model = text_half(architecture, "openclip-text")
        if source is not None:
            fill(self.model, read(architecture, source, "openclip-text"), source, "openclip-text")
        self.words = ClipWords(self.model.context_length, "openclip-text")
        width, embedding = (
            self.model.ln_final.weight.shape[0],
            described(architecture, [], "openclip-text")["embed_dim"],
        )
        sizes = {"embedding": embedding, "projected": embedding}
        asked = {"context": context, "vector": vector}
        self.provides: Mapping[str, int] = {slot: sizes.get(name, width) for slot, name in asked.items() if name}
        self._freeze()
        self.train()

    def claims(self, names: Collection[str]) -> dict[str, str | None]:
        """The names in a file of Stable Diffusion 2 -> those here, or None for the image tower and the causal mask.

        Args:
            names: all names in the file; those of the text encoder begin with ``cond_stage_model.model.``.
        """
        prefix, unused = "cond_stage_model.", ("model.visual.", "model.attn_mask")
        owns = {name: name.removeprefix(prefix) for name in names if name.startswith(f"{prefix}model.")}
        return {name: None if own.startswith(unused) else own for name, own in owns.items()}

    def forward(self, batch: Batch) -> Conditioning:
        """Encode the prompts."""
        return self._encoded(prompts_of(batch, "openclip-text"))

    def null(self, batch: Batch) -> Conditioning:
        """``null_prompt``, or zeros, once per image."""
        count = len(prompts_of(batch, "openclip-text"))
        one = self._encoded([self.null_prompt or ""])
        one = one.map(torch.zeros_like) if self.null_prompt is None else one
        return one.map(lambda value: value.expand(count, *value.shape[1:]))

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for what is frozen."""
        return super().train(mode and not self.frozen)

    def _encoded(self, prompts: Sequence[str]) -> Conditioning:
        ids = self.words(prompts).to(self.model.ln_final.weight.device)
        depth = len(self.model.transformer.resblocks)
        layers = [depth - 2, depth - 1]
        states = self.model.forward_intermediates(text=ids, text_indices=layers, normalize=False)
        before, last = states["text_intermediates"]
        projected = states["text_features"]
        outputs = {
            "penultimate-norm": self.model.ln_final(before),
            "penultimate": before,
            "last": self.model.ln_final(last),
            "embedding": F.normalize(projected, dim=-1)[:, None],
            "projected": projected,
        }
        return Conditioning(context=outputs.get(self.context or ""), vector=outputs.get(self.vector or ""))

    def _freeze(self) -> None:
        """No gradients for what is frozen, nor for what no output depends on, which distributed training would miss."""
        if self.frozen:
            self.requires_grad_(False)
        self.model.logit_scale.requires_grad_(False)
        if self.vector is None and self.context != "embedding":
            self.model.text_projection.requires_grad_(False)
        if self.vector is None and self.context in ("penultimate", "penultimate-norm"):
            self.model.transformer.resblocks[-1].requires_grad_(False)
        if self.vector is None and self.context == "penultimate":
            self.model.ln_final.requires_grad_(False)
