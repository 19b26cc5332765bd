"""Images of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ldmkit.tasks.contract import Frame, Inputs

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion


@dataclass(frozen=True)
class TextToImage:
    """``prompt``, a string or a list of them, for any conditioner that reads prompts.

    ``negative_prompt``, one for all or one per prompt, is what guidance compares with in place of the null: the same
    conditioner on another batch.
    """

    takes = ("prompt", "negative_prompt")
    fills = ("prompt",)

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """The negative prompts, where there are some."""
        if inputs.get("negative_prompt") is None:
            return Frame(inputs)
        negative, count = _strings(inputs["negative_prompt"], "negative_prompt"), len(self.prepare(inputs)["prompt"])
        if len(negative) not in (1, count):
            raise ValueError(f"negative_prompt has {len(negative)} entries for {count} prompts: give one, or one each")
        repeated = negative * count if len(negative) == 1 else negative
        return Frame(inputs, negative={**inputs, "prompt": repeated}, against=self.fills)

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """``prompt`` as a list of B strings.

        Raises:
            ValueError: no prompt, or text that cannot be encoded.
            TypeError: something that is no text.
        """
        if inputs.get("prompt") is None:
            raise ValueError("task 'text-to-image' needs prompt=: a string or a list of them; '' says nothing")
        return {"prompt": _strings(inputs["prompt"], "prompt")}


def _strings(given: object, name: str) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple):
        raise TypeError(f"{name} must be a string or a list of strings, got {type(given).__name__}")
    if not texts:
        raise ValueError(f"{name} is an empty list: '' is the prompt that says nothing")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] must be a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}[{i}] holds half a character (a lone surrogate): decode the text again") from error
    return list(texts)
