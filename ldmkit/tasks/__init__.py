"""Tasks: from what a user has to the batch a model's conditioners read, the same for sampling and for training."""

from ldmkit.tasks.contract import Fitting, Frame, Framing, Inputs, Noising, Task

__all__ = ["Fitting", "Frame", "Framing", "Inputs", "Noising", "Task"]
