"""Training: what a loop of one's own needs around the model's loss."""

from ldmkit.training.ema import EMA

__all__ = ["EMA"]
