"""Text conditioning with the encoder of T5.

    prompt -> ids </s> <pad> ... -> encoder -> context (B, L, D)

Models differ in whether padding is hidden: those of the Imagen family hide it from encoder and backbone, the T5 variant
of Stable Diffusion's code and its successors read it. ``masked`` says which; a model trained one way is silently worse
the other way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from ldmkit.conditioning import Batch, Conditioning
from torch import nn
from transformers import T5EncoderModel, T5TokenizerFast

from ldmkit_transformers.pretrained import description, network
from ldmkit_transformers.prompts import PromptTokenizer, prompts_of


class T5Text(nn.Module):
    """Encodes prompts with the encoder of a pretrained T5.

    Args:
        source: a folder that ``save_pretrained`` wrote, or a hub id such as ``google/t5-v1_1-large``. It is read once:
            weights, configuration and tokenizer become part of the model. The decoder is left out.
        config: instead, the architecture in the words of ``T5Config``, for random weights.
        tokenizer: where the tokenizer is, if not in ``source``: a folder or a hub id.
        length: L, the tokens of every prompt: the text, </s>, padding.
        masked: hide padding from the encoder and, by ``context_mask``, from the backbone.
        frozen: keep T5 as it is: no gradients, and eval mode whatever the model's mode.

    Reads ``prompt``: B strings. Its null is the empty prompt.

    Raises:
        ValueError: both or neither of ``source`` and ``config``, unknown words in ``config``, no vocabulary where the
            tokenizer should be, or more tokens than T5 has embeddings for; in a call, as
            :class:`~.prompts.PromptTokenizer`.
        CheckpointError: ``source`` holds another network.
        ImportError: the tokenizer is a ``spiece.model`` alone, and what reads that is not installed.

    Source: Raffel et al. 2020 (arXiv 1910.10683); Saharia et al. 2022 (arXiv 2205.11487), section 2.1;
    ``FrozenT5Embedder`` of Stable Diffusion's code (``masked=False``), whose names of parameters these are.
    """

    reads: tuple[str, ...] = ("prompt",)
    filled_by: tuple[str, ...] = ("source", "tokenizer")

    def __init__(
        self,
        source: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        length: int = 77,
        masked: bool = True,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.source = source
        self.tokenizer = tokenizer
        self.length = length
        self.masked = masked
        self.frozen = frozen
        self.transformer = network(T5EncoderModel, source, config, "t5-text")
        self.config = description(self.transformer) if config is None else dict(config)
        self.prompt_tokenizer = PromptTokenizer(length, "t5-text")
        if (place := tokenizer or source) is not None:
            self.read_tokenizer(place)
        self.provides: Mapping[str, int] = {"context": self.transformer.config.d_model}
        if frozen:
            self.requires_grad_(False)
        self.train()

    def read_tokenizer(self, source: str) -> None:
        """Read a tokenizer into a model that has none: its weights came from a file of another program.

        Args:
            source: as ``tokenizer``.

        Raises:
            ValueError: it has no vocabulary, or more words than T5 has embeddings for.
            ImportError: it is a ``spiece.model`` alone, and what reads that is not installed.
        """
        try:
            tokenizer = T5TokenizerFast.from_pretrained(source)
        except (ImportError, ValueError) as error:
            raise ImportError(
                f"conditioner 't5-text' cannot read the tokenizer of '{source}'; if it is a spiece.model without a "
                "tokenizer.json: pip install 'ldmkit-transformers[spiece]'"
            ) from error
        self.prompt_tokenizer.take(tokenizer, self.transformer.config.vocab_size)

    def forward(self, batch: Batch) -> Conditioning:
        """Encode the prompts into context (B, L, D) and, where ``masked``, its mask."""
        return self._encoded(prompts_of(batch, "t5-text"))

    def null(self, batch: Batch) -> Conditioning:
        """The empty prompt, once per image."""
        count = len(prompts_of(batch, "t5-text"))
        return self._encoded([""]).map(lambda value: value.expand(count, *value.shape[1:]))

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for what is frozen."""
        return super().train(mode and not self.frozen)

    def _encoded(self, prompts: Sequence[str]) -> Conditioning:
        tokens = self.prompt_tokenizer(prompts)
        ids, mask = (value.to(self.transformer.device) for value in tokens)
        encoded = self.transformer(input_ids=ids, attention_mask=mask if self.masked else None)
        return Conditioning(context=encoded.last_hidden_state, context_mask=mask if self.masked else None)
