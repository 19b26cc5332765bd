"""Text conditioning with BERT's words: a transformer trained with the model, or a pretrained BERT.

    prompt -> [CLS] ids [SEP] [PAD] ... -> transformer -> context (B, L, D)

The two differ in what they do with padding. The published text-to-image model was trained without a mask, so its
transformer reads the padding and so does the backbone. BERT itself was trained with a mask, so here padding is hidden
from the encoder, and from the backbone by ``context_mask``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ldmkit.conditioners import TokenTransformer
from ldmkit.conditioning import Batch, Conditioning
from torch import nn
from transformers import BertModel, BertTokenizerFast, PreTrainedTokenizerFast

from ldmkit_transformers.pretrained import description, network
from ldmkit_transformers.prompts import PromptTokenizer, prompts_of


class BertText(nn.Module):
    """Encodes prompts with BERT's tokenizer and a transformer that is trained with the model.

    Args:
        width: D, the width of the context.
        depth: attention and feed-forward pairs.
        heads: attention heads.
        head_width: width of one head; ``heads * head_width`` need not be D.
        length: L, the tokens of every prompt: [CLS], the text, [SEP], padding.
        vocabulary: rows of the table of embeddings. None: as many as the tokenizer has words.
        tokenizer: where to read the tokenizer: a vocabulary file with one word per line, a folder, or a hub id such as
            ``bert-base-uncased``. It becomes part of the model; None where the model's file will bring it.
        frozen: keep the transformer as it is: no gradients, and eval mode whatever the model's mode.

    Reads ``prompt``: B strings. Its null is the empty prompt.

    Raises:
        ValueError: sizes below 1, a tokenizer of more words than ``vocabulary``, or neither of the two; in a call, as
            :class:`~.prompts.PromptTokenizer`.

    Source: arXiv 2112.10752, appendix E.2.1; ``BERTEmbedder`` of the original (widths and depths 640 / 32 and
    1280 / 32), whose names of parameters these are.
    """

    reads: tuple[str, ...] = ("prompt",)
    filled_by: tuple[str, ...] = ("tokenizer",)

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        heads: int = 8,
        head_width: int = 64,
        length: int = 77,
        vocabulary: int | None = None,
        tokenizer: str | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.depth = depth
        self.heads = heads
        self.head_width = head_width
        self.length = length
        self.tokenizer = tokenizer
        self.frozen = frozen
        self.prompt_tokenizer = PromptTokenizer(length, "bert-text")
        if tokenizer is not None:
            self.prompt_tokenizer.take(bert_tokenizer(tokenizer), vocabulary)
        elif vocabulary is None:
            raise ValueError("conditioner 'bert-text' needs a tokenizer, or vocabulary= to be filled from a file later")
        self.vocabulary = self.prompt_tokenizer.size if vocabulary is None else vocabulary
        self.provides: Mapping[str, int] = {"context": width}
        self.transformer = TokenTransformer(self.vocabulary, length, width, depth, heads, head_width)
        if frozen:
            self.requires_grad_(False)
        self.train()

    def read_tokenizer(self, source: str) -> None:
        """Read a tokenizer into a model that has none: its weights came from a file of another program.

        Args:
            source: as ``tokenizer``.

        Raises:
            ValueError: it has no vocabulary, or more words than ``vocabulary``.
        """
        self.prompt_tokenizer.take(bert_tokenizer(source), self.vocabulary)

    def forward(self, batch: Batch) -> Conditioning:
        """Encode the prompts into context (B, L, D), without a mask."""
        return self._encoded(prompts_of(batch, "bert-text"))

    def null(self, batch: Batch) -> Conditioning:
        """The empty prompt, once per image."""
        count = len(prompts_of(batch, "bert-text"))
        return self._encoded([""]).map(lambda value: value.expand(count, *value.shape[1:]))

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for what is frozen."""
        return super().train(mode and not self.frozen)

    def _encoded(self, prompts: Sequence[str]) -> Conditioning:
        ids = self.prompt_tokenizer(prompts).ids.to(self.transformer.norm.weight.device)
        return Conditioning(context=self.transformer(ids))


class Bert(nn.Module):
    """Encodes prompts with a pretrained BERT.

    Args:
        source: a folder that ``save_pretrained`` wrote, or a hub id such as ``bert-base-uncased``. It is read once:
            weights, configuration and tokenizer become part of the model.
        config: instead, the architecture in the words of ``BertConfig``, for random weights.
        tokenizer: where the tokenizer is, if not in ``source``: a vocabulary file, a folder or a hub id.
        length: L, the tokens of every prompt: [CLS], the text, [SEP], padding.
        frozen: keep BERT as it is: no gradients, and eval mode whatever the model's mode.

    Reads ``prompt``: B strings. Its null is the empty prompt.

    Raises:
        ValueError: both or neither of ``source`` and ``config``, unknown words in ``config``, no vocabulary where the
            tokenizer should be, or more tokens than BERT has positions or embeddings for; in a call, as
            :class:`~.prompts.PromptTokenizer`.
        CheckpointError: ``source`` holds another network.

    Source: Devlin et al. 2019 (arXiv 1810.04805).
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
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.source = source
        self.tokenizer = tokenizer
        self.length = length
        self.frozen = frozen
        self.transformer = network(BertModel, source, config, "bert", options={"add_pooling_layer": False})
        self.config = description(self.transformer) if config is None else dict(config)
        made = self.transformer.config
        if length > made.max_position_embeddings:
            raise ValueError(f"conditioner 'bert' has {made.max_position_embeddings} positions, fewer than {length=}")
        self.prompt_tokenizer = PromptTokenizer(length, "bert")
        if (place := tokenizer or source) is not None:
            self.read_tokenizer(place)
        self.provides: Mapping[str, int] = {"context": made.hidden_size}
        if frozen:
            self.requires_grad_(False)
        self.train()

    def read_tokenizer(self, source: str) -> None:
        """Read a tokenizer into a model that has none: its weights came from a file of another program.

        Args:
            source: as ``tokenizer``.

        Raises:
            ValueError: it has no vocabulary, or more words than BERT has embeddings for.
        """
        self.prompt_tokenizer.take(bert_tokenizer(source), self.transformer.config.vocab_size)

    def forward(self, batch: Batch) -> Conditioning:
        """Encode the prompts into context (B, L, D) and its mask, True on tokens that are not padding."""
        return self._encoded(prompts_of(batch, "bert"))

    def null(self, batch: Batch) -> Conditioning:
        """The empty prompt, once per image."""
        count = len(prompts_of(batch, "bert"))
        return self._encoded([""]).map(lambda value: value.expand(count, *value.shape[1:]))

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for what is frozen."""
        return super().train(mode and not self.frozen)

    def _encoded(self, prompts: Sequence[str]) -> Conditioning:
        tokens = self.prompt_tokenizer(prompts)
        ids, mask = (value.to(self.transformer.device) for value in tokens)
        encoded = self.transformer(input_ids=ids, attention_mask=mask)
        return Conditioning(context=encoded.last_hidden_state, context_mask=mask)


def bert_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a vocabulary file, with BERT's usual settings (lower case), or of a folder or hub id."""
    if not Path(source).is_file():
        return BertTokenizerFast.from_pretrained(source)
    with Path(source).open(encoding="utf-8") as lines:  # not splitlines(), which also splits at rarer separators
        return BertTokenizerFast(vocab={line.rstrip("\n"): n for n, line in enumerate(lines)}, do_lower_case=True)
