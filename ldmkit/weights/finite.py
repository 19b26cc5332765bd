"""Whether a tensor holds only numbers, without a temporary of its size."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(tensor: Tensor, infinity: bool = False) -> bool:
    """Whether a tensor holds no NaN and, unless ``infinity`` is allowed, nothing infinite; integers always do.

    Args:
        tensor: any shape, type and device.
        infinity: allow -inf and inf, as masks hold them.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # The smallest and the largest carry every NaN and every infinity; one-byte types know no order.
    low, high = (tensor if tensor.element_size() > 1 else tensor.float()).aminmax()
    ends = torch.stack([low, high]).float()
    return not bool(ends.isnan().any() if infinity else (~ends.isfinite()).any())
