r"""Text conditioning with CLIP's text tower.

.. math:: h_0 = T[\mathrm{ids}] + P, \qquad h_n = \mathrm{layer}_n(h_{n-1}), \qquad h = \mathrm{LN}(h_N), \qquad
          p = h_{\mathrm{end}}, \qquad e = W p

Prompts are 77 tokens long and attention is causal, so padding behind the end changes nothing before it; the published
models nevertheless let the backbone read all 77 tokens, padding included, and so there is no mask.

====================  ==============  ==============================================================
output                shape           used by
====================  ==============  ==============================================================
``last``              (B, L, D)       :math:`h`: Stable Diffusion 1
``penultimate``       (B, L, D)       :math:`h_{N-1}`: the first text encoder of SDXL
``penultimate-norm``  (B, L, D)       :math:`\mathrm{LN}(h_{N-1})`: Stable Diffusion 2, "clip skip" on SD 1
``embedding``         (B, 1, E)       :math:`e / |e|` as one token: retrieval-augmented LDM
``pooled``            (B, D)          :math:`p`, a vector
``projected``         (B, E)          :math:`e`, a vector
====================  ==============  ==============================================================
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Self, cast

import torch
from ldmkit.conditioning import Batch, Conditioning
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast

from ldmkit_transformers.pretrained import description, network
from ldmkit_transformers.prompts import PromptTokenizer, Tokenized, prompts_of

CONTEXTS = ("last", "penultimate", "penultimate-norm", "embedding")
VECTORS = ("pooled", "projected")
PROJECTION = "text_projection.weight"
TOWER = ("embeddings.", "encoder.", "final_layer_norm.")
"""The levels below ``text_model``, which files written with some versions of transformers leave out."""


class ClipText(nn.Module):
    """Encodes prompts with the text tower of a pretrained CLIP.

    Args:
        source: a folder that ``save_pretrained`` wrote, or a hub id such as ``openai/clip-vit-large-patch14``. It is
            read once: weights, configuration and tokenizer become part of the model.
        config: instead, the architecture in the words of ``CLIPTextConfig``, for random weights.
        tokenizer: where the tokenizer is, if not in ``source``: a folder or a hub id.
        context: what fills the context, one of the table above; None: nothing.
        vector: what fills the vector, one of the table above; None: nothing.
        null_prompt: the prompt that means nothing. None: the null is zeros, as in retrieval-augmented models.
        frozen: keep CLIP as it is: no gradients, and eval mode whatever the model's mode.

    Reads ``prompt``: B strings.

    Raises:
        ValueError: an unknown output or none, both or neither of ``source`` and ``config``, unknown words in
            ``config``, no vocabulary where the tokenizer should be, or more tokens than CLIP has embeddings for; in a
            call, as :class:`~.prompts.PromptTokenizer`.
        CheckpointError: ``source`` holds another network, or no projection where one is asked for.

    Source: Radford et al. 2021 (arXiv 2103.00020); ``FrozenCLIPEmbedder`` of Stable Diffusion, whose names of
    parameters these are (``transformer.text_model.*``).
    """

    reads: tuple[str, ...] = ("prompt",)
    filled_by: tuple[str, ...] = ("source", "tokenizer")

    def __init__(
        self,
        source: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        context: Literal["last", "penultimate", "penultimate-norm", "embedding"] | None = "last",
        vector: Literal["pooled", "projected"] | None = None,
        null_prompt: str | None = "",
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if (context, vector) == (None, None) or context not in (None, *CONTEXTS) or vector not in (None, *VECTORS):
            raise ValueError(
                f"conditioner 'clip-text' gives a context of {CONTEXTS}, a vector of {VECTORS}, or both; got "
                f"{context=} and {vector=}"
            )
        self.source = source
        self.tokenizer = tokenizer
        self.context = context
        self.vector = vector
        self.null_prompt = null_prompt
        self.frozen = frozen
        projects = context == "embedding" or vector == "projected"
        spare = () if projects else (PROJECTION,)
        model = network(CLIPTextModelWithProjection, source, config, "clip-text", unused=spare)
        self.config = description(model) if config is None else dict(config)
        # Not the model itself: whether it has a level called text_model depends on the version of transformers.
        self.transformer = nn.ModuleDict({"text_model": model.text_model})
        if projects:
            self.transformer["text_projection"] = model.text_projection
        self.prompt_tokenizer = PromptTokenizer(model.config.max_position_embeddings, "clip-text")
        if (place := tokenizer or source) is not None:
            self.read_tokenizer(place)
        sizes = {"embedding": model.config.projection_dim, "projected": model.config.projection_dim}
        asked = {"context": context, "vector": vector}
        width = model.config.hidden_size
        self.provides: Mapping[str, int] = {slot: sizes.get(name, width) for slot, name in asked.items() if name}
        self._freeze()
        self.train()

    def read_tokenizer(self, source: str) -> None:
        """Read a tokenizer into a model that has none: its weights came from a file of another program.

        Args:
            source: as ``tokenizer``.

        Raises:
            ValueError: it has no vocabulary, or more words than CLIP has embeddings for.
        """
        table = cast(CLIPTextModel, self.transformer["text_model"]).embeddings.token_embedding
        self.prompt_tokenizer.take(CLIPTokenizerFast.from_pretrained(source), table.num_embeddings)

    def claims(self, names: Collection[str]) -> dict[str, str | None]:
        """The names in a file of Stable Diffusion -> those here, or None for what is no weight or another half of CLIP.

        Args:
            names: all names in the file; those of the text encoder begin with ``cond_stage_model.transformer.``.
        """
        prefix = "cond_stage_model.transformer."
        return {name: self._own(name.removeprefix(prefix)) for name in names if name.startswith(prefix)}

    def forward(self, batch: Batch) -> Conditioning:
        """Encode the prompts."""
        return self._encoded(prompts_of(batch, "clip-text"))

    def null(self, batch: Batch) -> Conditioning:
        """``null_prompt``, or zeros, once per image."""
        count = len(prompts_of(batch, "clip-text"))
        one = self._encoded([self.null_prompt or ""])
        one = one.map(torch.zeros_like) if self.null_prompt is None else one
        return one.map(lambda value: value.expand(count, *value.shape[1:]))

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for what is frozen."""
        return super().train(mode and not self.frozen)

    def _own(self, name: str) -> str | None:
        """The name here of what transformers calls ``name`` in a CLIP, whole or its text half."""
        unused = name == PROJECTION and "text_projection" not in self.transformer
        others = ("vision_model.", "visual_projection.", "logit_scale")
        if unused or name.startswith(others) or name.endswith("embeddings.position_ids"):
            return None
        return f"transformer.{'text_model.' if name.startswith(TOWER) else ''}{name}"

    def _encoded(self, prompts: Sequence[str]) -> Conditioning:
        tower = cast(CLIPTextModel, self.transformer["text_model"])
        tokens = self.prompt_tokenizer(prompts)
        before, last = hidden_states(tower, tokens.ids.to(tower.final_layer_norm.weight.device))
        pooled = last[torch.arange(len(prompts)), first_end(tokens)]
        outputs = {"last": last, "penultimate": before, "pooled": pooled}
        outputs["penultimate-norm"] = tower.final_layer_norm(before)
        if "text_projection" in self.transformer:
            outputs["projected"] = self.transformer["text_projection"](pooled)
            outputs["embedding"] = F.normalize(outputs["projected"], dim=-1)[:, None]
        return Conditioning(context=outputs.get(self.context or ""), vector=outputs.get(self.vector or ""))

    def _freeze(self) -> None:
        """No gradients for what is frozen, nor for what no output depends on, which distributed training would miss."""
        tower = cast(CLIPTextModel, self.transformer["text_model"])
        if self.frozen:
            self.requires_grad_(False)
        if self.vector is None and self.context in ("penultimate", "penultimate-norm"):
            tower.encoder.layers[-1].requires_grad_(False)
        if self.vector is None and self.context == "penultimate":
            tower.final_layer_norm.requires_grad_(False)


def hidden_states(tower: CLIPTextModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(h of the last layer but one, h of the last layer behind the final norm), each (B, L, D), of ids (B, L).

    Written out because transformers hands out inner layers through hooks, which once used cannot be pickled.
    """
    h = tower.embeddings(input_ids=ids)
    future = torch.full((ids.shape[1], ids.shape[1]), float("-inf"), dtype=h.dtype, device=h.device).triu(1)
    *first, final = tower.encoder.layers
    for layer in first:
        h = layer(h, future[None, None])
    return h, tower.final_layer_norm(final(h, future[None, None]))


def first_end(tokens: Tokenized) -> Tensor:
    """Where each prompt ends: the place (B,) of the first id that is the one before the padding.

    Looking for the id, and not counting, finds the same place as CLIP where a prompt spells the end-of-text token out.
    """
    end = tokens.ids.gather(1, tokens.mask.sum(dim=1, keepdim=True) - 1)
    return (tokens.ids == end).int().argmax(dim=1)
