"""Prompts to token ids in OpenCLIP's own words.

    "a cat"  ->  <start> a cat <end> 0 ... 0        L ids

The vocabulary is part of the OpenCLIP distribution, so there is nothing to read and nothing to keep in a model's file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from warnings import warn

import torch
from ldmkit.conditioning import Batch
from open_clip import SimpleTokenizer
from torch import Tensor


class TruncationWarning(UserWarning):
    """Prompts were longer than the model reads, and their ends were cut off."""


class ClipWords:
    """Prompts to ids of one length, cut, ended and padded as OpenCLIP's models expect.

    Args:
        length: L, the start and end tokens and the padding included.
        owner: the component's registered name, for messages.
    """

    def __init__(self, length: int, owner: str) -> None:
        self.length = length
        self.owner = owner

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, L) int64, on the CPU.

        Warns:
            TruncationWarning: some prompts are too long, with the number of tokens that each loses.
        """
        excess = [len(_words().encode(text)) + 2 - self.length for text in prompts]
        if lost := {n: count for n, count in enumerate(excess) if count > 0}:
            cut = ", ".join(f"{count} of prompt {n} ({prompts[n]:.40}...)" for n, count in lost.items())
            warn(f"'{self.owner}' reads {self.length} tokens; cut off: {cut}", TruncationWarning, stacklevel=2)
        ids: Tensor = _words()(list(prompts), context_length=self.length)
        return ids


@functools.cache
def _words() -> SimpleTokenizer:
    """OpenCLIP's tokenizer, one for the process: it remembers the words that it has split."""
    return SimpleTokenizer()


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
