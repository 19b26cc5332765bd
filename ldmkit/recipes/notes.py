"""What a published model's recipe says beside its composition: one vocabulary of notes, see :data:`KEYS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ldmkit.parts import Value

KEYS: Mapping[str, str] = {
    "published_as": "the name under which it was published",
    "task": "the registered task it is for",
    "inputs": "what the task is given, as Python source",
    "licence": "of the weights, as their publisher states it; the repository's where none is stated for them",
    "source": "where its publisher offers the file",
    "paper": "arXiv number of the paper that describes it",
    "ema": "'beside': the file holds raw and averaged weights; 'only': the averaged ones under the raw names",
    "unused": "prefix of names in the file -> why those tensors have no place in the model",
    "sampling": "sampler, steps, eta, guidance_scale, and height and width in pixels of what it was trained on",
    "null": "what classifier-free guidance compares with; null where the model was trained without one",
    "numbers": "published results, each with the setting they hold for",
    "remarks": "what a user would otherwise find out late",
}
"""The keys of a published recipe's notes, all of them present, with their meaning."""

STATED = "MIT (the repository's)"
LDM = "2112.10752"
UNKNOWN_DROP = (
    "How often training dropped the condition is not published: the rate of 0.1 here is Stable Diffusion 1's."
)
ONE_HEAD = (
    "Its transformers have one head: the configuration's num_head_channels was not read by the code that trained it, "
    "and is by the code published last, which therefore builds another network from the same file."
)


def notes(
    *,
    published_as: str,
    task: str,
    inputs: str,
    source: str,
    ema: Literal["beside", "only"],
    sampling: Mapping[str, Value],
    null: str | None,
    numbers: Sequence[Mapping[str, Value]] = (),
    remarks: Sequence[str] = (),
    unused: Mapping[str, str] | None = None,
    licence: str = STATED,
    paper: str = LDM,
) -> dict[str, Value]:
    """The notes of a published model; the arguments are the keys of :data:`KEYS`."""
    return {
        "published_as": published_as,
        "task": task,
        "inputs": inputs,
        "licence": licence,
        "source": source,
        "paper": paper,
        "ema": ema,
        "unused": dict(unused or {}),
        "sampling": dict(sampling),
        "null": null,
        "numbers": [dict(result) for result in numbers],
        "remarks": list(remarks),
    }


def sampling(
    steps: int, size: int, eta: float = 0.0, guidance_scale: float = 1.0, sampler: str = "ddim"
) -> dict[str, Value]:
    """Sampling defaults.

    Args:
        steps: of the process's customary levels.
        size: height and width in pixels.
        eta: share of fresh noise, in [0, 1].
        guidance_scale: of classifier-free guidance; 1 is off.
        sampler: its registered name.
    """
    return {
        "sampler": sampler,
        "steps": steps,
        "eta": eta,
        "guidance_scale": guidance_scale,
        "height": size,
        "width": size,
    }
