"""Prompts to token ids, by a tokenizer that is data.

    "a cat"  ->  [CLS] a cat [SEP] [PAD] ... [PAD]        L ids, and a mask that is True on the first four

The whole tokenizer (its vocabulary, the text's normalisation, special tokens, how it pads and cuts) is the JSON of the
``tokenizers`` library. That JSON is the module's extra state, so it travels in the model's file; the folder it came
from is not needed again, and reading it runs no code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from warnings import warn

import torch
from ldmkit import CheckpointError
from ldmkit.conditioning import Batch
from tokenizers import Encoding
from tokenizers import Tokenizer as Backend
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

LARGEST = 16 * 2**20
"""Bytes of tokenizer that a model's file may carry."""


class TruncationWarning(UserWarning):
    """Prompts were longer than the model reads, and their ends were cut off."""


class Tokenized(NamedTuple):
    """What a network reads of B prompts: ``ids`` (B, L) int64 and ``mask`` (B, L) bool, False on padding."""

    ids: Tensor
    mask: Tensor


class PromptTokenizer(nn.Module):
    """Prompts to ids of one length: cut, ended and padded as the tokenizer says.

    Args:
        length: L, special tokens and padding included.
        owner: the conditioner's registered name, for messages.
    """

    def __init__(self, length: int, owner: str) -> None:
        super().__init__()
        self.length = length
        self.owner = owner
        self._backend: Backend | None = None

    @property
    def size(self) -> int:
        """The number of ids that the tokenizer can give."""
        return self._filled().get_vocab_size()

    def take(self, tokenizer: PreTrainedTokenizerFast, rows: int | None = None) -> None:
        """Take over a tokenizer of transformers, with its padding token and its sides of padding and cutting.

        Args:
            tokenizer: the tokenizer.
            rows: of the network's table of embeddings, if that is known.

        Raises:
            ValueError: it has no vocabulary, words beyond the table, or more than ``LARGEST`` bytes of them.
        """
        # transformers answers a folder without tokenizer files with the special tokens alone, and no error.
        if tokenizer.get_vocab() == type(tokenizer)().get_vocab():
            raise ValueError(
                f"conditioner '{self.owner}' found no vocabulary in '{tokenizer.name_or_path}': give the folder or hub "
                "id of a tokenizer with tokenizer=..."
            )
        backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
        backend.enable_truncation(self.length, direction=tokenizer.truncation_side)
        backend.enable_padding(
            direction=tokenizer.padding_side,
            pad_id=tokenizer.pad_token_id,
            pad_token=tokenizer.pad_token,
            length=self.length,
        )
        if rows is not None and (words := backend.get_vocab_size()) > rows:
            raise ValueError(
                f"conditioner '{self.owner}': the tokenizer has {words} words and the network embeddings for {rows}: "
                "they do not belong together"
            )
        if (size := len(backend.to_str().encode())) > LARGEST:
            raise ValueError(
                f"conditioner '{self.owner}': the tokenizer of '{tokenizer.name_or_path}' takes {size:,} bytes, and "
                f"a model's file carries at most {LARGEST:,}"
            )
        self._backend = backend

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, prompts: Sequence[str]) -> Tokenized:
        """Token ids and mask of B prompts, on the CPU.

        Warns:
            TruncationWarning: some prompts are too long, with the number of tokens that each loses.

        Raises:
            RuntimeError: no tokenizer was given.
        """
        encodings = self._filled().encode_batch(list(prompts))
        self._report({n: lost for n, encoding in enumerate(encodings) if (lost := _lost(encoding))}, prompts)
        ids = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)
        return Tokenized(ids.view(-1, self.length), mask.view(-1, self.length))

    def get_extra_state(self) -> Tensor:
        """The tokenizer as bytes, uint8 (N,); none of them before one was given."""
        if self._backend is None:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(bytearray(self._backend.to_str().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a tokenizer that :meth:`get_extra_state` gave.

        Raises:
            CheckpointError: the bytes are no tokenizer, or one that pads to another length.
        """
        data = state.cpu().numpy().tobytes()
        if not data:
            self._backend = None
            return
        try:
            backend = Backend.from_str(data.decode())
        except Exception as error:  # the library raises no narrower class
            raise CheckpointError(f"conditioner '{self.owner}': its tokenizer cannot be read: {error}") from error
        lengths = (backend.padding or {}).get("length"), (backend.truncation or {}).get("max_length")
        if lengths != (self.length, self.length):
            raise CheckpointError(
                f"conditioner '{self.owner}' reads {self.length} tokens; the tokenizer in the file pads and cuts to "
                f"{lengths}"
            )
        self._backend = backend

    def _filled(self) -> Backend:
        if self._backend is None:
            raise RuntimeError(
                f"conditioner '{self.owner}' has no tokenizer: build it with tokenizer=..., a folder or a hub id, load "
                "a model that holds one, or, where a file of another program brought the weights and no words, call "
                "its read_tokenizer(...) with a folder or a hub id"
            )
        return self._backend

    def _report(self, lost: dict[int, int], prompts: Sequence[str]) -> None:
        if lost:
            cut = ", ".join(f"{count} of prompt {n} ({prompts[n]:.40}...)" for n, count in lost.items())
            warn(
                f"conditioner '{self.owner}' reads {self.length} tokens; cut off: {cut}",
                TruncationWarning,
                stacklevel=2,
            )


def prompts_of(batch: Batch, owner: str) -> list[str]:
    """Read ``batch["prompt"]``, one string per image.

    Raises:
        TypeError: it is anything else; a single string too, which would be one prompt per letter.
    """
    given = batch["prompt"]
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        kinds = sorted({type(text).__name__ for text in given}) if isinstance(given, list | tuple) else ""
        raise TypeError(
            f"conditioner '{owner}' reads batch['prompt'] as a list of strings, one per image; got "
            f"{type(given).__name__} {kinds or ''}".rstrip()
        )
    return list(given)


def _lost(encoding: Encoding) -> int:
    """How many tokens of the text itself were cut off; each overflowing part repeats the special tokens."""
    return sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
