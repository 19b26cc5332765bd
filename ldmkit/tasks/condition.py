"""The condition beside an image: inpainting with a prompt, super-resolution of a class.

A task on images holds another task as its ``condition``; a model that reads more than the image decides which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from ldmkit.conditioning import LATENT
from ldmkit.tasks.canvas import rows
from ldmkit.tasks.class_conditional import ClassConditional
from ldmkit.tasks.contract import Fitting, Frame, Framing, Inputs, Task
from ldmkit.tasks.layout_to_image import LayoutToImage
from ldmkit.tasks.semantic_synthesis import SemanticSynthesis
from ldmkit.tasks.text_to_image import TextToImage

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion

CONDITIONS: tuple[Task, ...] = (
    TextToImage(),
    ClassConditional(),
    LayoutToImage(),
    LayoutToImage(objects="points"),
    SemanticSynthesis(),
)


@dataclass(frozen=True)
class Together:
    """Several tasks as one: what each takes and fills.

    Args:
        tasks: at least one, each filling keys of its own.
    """

    tasks: tuple[Task, ...]

    @property
    def takes(self) -> tuple[str, ...]:
        """What any of them takes."""
        return tuple(dict.fromkeys(key for task in self.tasks for key in task.takes))

    @property
    def fills(self) -> tuple[str, ...]:
        """What any of them fills."""
        return tuple(dict.fromkeys(key for task in self.tasks for key in task.fills))

    def fitted(self, model: LatentDiffusion) -> Self:
        """Each of them fitted."""
        return replace(self, tasks=tuple(_fitted(task, model) for task in self.tasks))

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """The frames of all; the sizes that they ask for must agree."""
        size: tuple[int, int] | None = None
        changed: dict[str, Any] = {}
        against: list[str] = []
        cuts: list[Callable[[Tensor], Tensor]] = []
        for task in self.tasks:
            told = framed(task, inputs, model)
            size = agreed(size, told.size)
            changed |= {key: value for key, value in (told.negative or {}).items() if value is not inputs.get(key)}
            against += told.against
            cuts += [told.finish] if told.finish else []
            inputs = told.inputs
        return Frame(
            inputs,
            size=size,
            negative={**inputs, **changed} if changed else None,
            against=tuple(against),
            finish=(lambda images: reduce(lambda made, cut: cut(made), cuts, images)) if cuts else None,
        )

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """The batches of all, one entry of a kind repeated."""
        return aligned({key: value for task in self.tasks for key, value in task.prepare(inputs).items()})


def condition_for(condition: Task | None, model: LatentDiffusion, own: Collection[str]) -> Task | None:
    """The condition task of a model: the one given, or what fills the keys that are not the image task's own."""
    if condition is not None:
        return _fitted(condition, model)
    reads = () if model.conditioner is None else model.conditioner.reads
    left = {key.removesuffix(LATENT) for key in reads} - {*own}
    tasks = tuple(_fitted(task, model) for task in CONDITIONS if task.fills[0] in left)
    return tasks[0] if len(tasks) == 1 else Together(tasks) if tasks else None


def framed(task: Task | None, inputs: Inputs, model: LatentDiffusion) -> Frame:
    """What a task asks of a call; an empty frame where it asks nothing."""
    return task.frame(inputs, model) if isinstance(task, Framing) else Frame(inputs)


def with_takes(own: tuple[str, ...], condition: Task | None) -> tuple[str, ...]:
    """The keywords of a task and of its condition."""
    return tuple(dict.fromkeys((*own, *(condition.takes if condition else ()))))


def with_fills(own: tuple[str, ...], condition: Task | None) -> tuple[str, ...]:
    """The batch keys of a task and of its condition."""
    return tuple(dict.fromkeys((*own, *(condition.fills if condition else ()))))


def reframed(frame: Frame, own: Mapping[str, Any], size: tuple[int, int]) -> Frame:
    """The condition's frame with the image task's own inputs and size."""
    return Frame(
        {**frame.inputs, **own},
        size=agreed(frame.size, size),
        negative=None if frame.negative is None else {**frame.negative, **own},
        against=frame.against,
    )


def agreed(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size that two inputs ask for.

    Raises:
        ValueError: they ask for different ones.
    """
    if one is not None and other is not None and one != other:
        raise ValueError(f"the inputs ask for images of {one[0]} x {one[1]} and of {other[0]} x {other[1]}: resize one")
    return other if one is None else one


def aligned(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Every entry for the same number of images; one of a kind serves all.

    Raises:
        ValueError: the numbers differ.
    """
    counts = {key: len(value) for key, value in batch.items()}
    if len({*counts.values()} - {1}) > 1:
        said = ", ".join(f"{count} of '{key}'" for key, count in counts.items())
        raise ValueError(f"the inputs differ in number: {said}; give one for all, or one each")
    return {key: _repeated(value, max(counts.values())) for key, value in batch.items()}


def _repeated(value: Any, count: int) -> Any:  # noqa: ANN401 - a tensor or a list
    if isinstance(value, Tensor):
        return rows(value, count)
    return list(value) * count if len(value) == 1 else value


def _fitted(task: Task, model: LatentDiffusion) -> Task:
    return task.fitted(model) if isinstance(task, Fitting) else task
