"""Images with the depth of a map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from ldmkit.tasks.condition import aligned, condition_for, framed, reframed, with_fills, with_takes
from ldmkit.tasks.contract import Frame, Inputs, Task
from ldmkit.tasks.given import numbers

if TYPE_CHECKING:
    from ldmkit.model import LatentDiffusion


@dataclass(frozen=True)
class DepthToImage:
    """``depth_map``, as large as the image, for a model that reads ``depth``: larger is nearer, in any unit.

    Args:
        condition: what the model reads beside the map; None: what fills the rest of its keys.
    """

    condition: Task | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        """``depth_map``, and the keywords of the condition."""
        return with_takes(("depth_map",), self.condition)

    @property
    def fills(self) -> tuple[str, ...]:
        """``depth``, and the keys of the condition."""
        return with_fills(("depth",), self.condition)

    def fitted(self, model: LatentDiffusion) -> Self:
        """With the condition that the model needs."""
        return replace(self, condition=condition_for(self.condition, model, ("depth",)))

    def frame(self, inputs: Inputs, model: LatentDiffusion) -> Frame:
        """The image is as large as the map."""
        depth = self._read(inputs)
        return reframed(
            framed(self.condition, inputs, model), {"depth_map": depth}, (int(depth.shape[2]), int(depth.shape[3]))
        )

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        """``depth`` as (B, 1, H, W), and what the condition fills.

        Raises:
            ValueError: no map, another shape than (H, W), (B, H, W) or (B, 1, H, W), or values that are not finite.
            TypeError: no numbers.
        """
        own = {"depth": self._read(inputs)}
        return aligned({**own, **(self.condition.prepare(inputs) if self.condition else {})})

    def _read(self, inputs: Inputs) -> Any:  # noqa: ANN401
        if inputs.get("depth_map") is None:
            raise ValueError("task 'depth-to-image' needs depth_map=: an array (H, W), larger = nearer, in any unit")
        depth = numbers(inputs["depth_map"], "depth_map", (2, 3, 4))
        depth = depth[:, None] if depth.ndim == 3 else depth
        if depth.shape[1] != 1:
            raise ValueError(f"depth_map must be (H, W), (B, H, W) or (B, 1, H, W), got shape {tuple(depth.shape)}")
        return depth
