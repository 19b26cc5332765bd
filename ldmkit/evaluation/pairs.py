r"""How near results are to the truth, image by image: PSNR, SSIM and LPIPS, with their uncertainty.

For reconstructions, super-resolution and inpainting, where result i has a truth i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldmkit.evaluation.digest import digest_of
from ldmkit.evaluation.sets import Images
from ldmkit.training.metrics import psnr, ssim
from ldmkit.training.parallel import gathered
from ldmkit.training.perceptual import LPIPS

RESAMPLES = 1000
AT_ONCE = 2**22
"""Values that are in memory at a time."""


@dataclass(frozen=True)
class Summary:
    """One number per image, summarised.

    Args:
        values: of every image, in the order of their numbers.
        mean: of them.
        standard_error: of the mean; NaN for one image or infinite values.
        interval: (low, high), 95 % of bootstrap means.
    """

    values: tuple[float, ...]
    mean: float
    standard_error: float
    interval: tuple[float, float]

    def facts(self) -> dict[str, Any]:
        """For the report, without the values."""
        found = {"mean": self.mean, "standard_error": self.standard_error, "interval_95": list(self.interval)}
        return {**found, "count": len(self.values)}


def summary(values: Sequence[float], seed: int = 0) -> Summary:
    """Mean, standard error, and a bootstrap interval of 1000 resamples.

    Args:
        values: at least one.
        seed: of the resamples.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("there are no values to summarise")
    x = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    means = _means(x, generator).sort().values
    low, high = float(means[round(0.025 * (RESAMPLES - 1))]), float(means[round(0.975 * (RESAMPLES - 1))])
    error = float(x.std() / len(x) ** 0.5) if len(x) > 1 else math.nan
    return Summary(tuple(x.tolist()), float(x.mean()), error, (low, high))


def _means(x: Tensor, generator: torch.Generator) -> Tensor:
    """(RESAMPLES,) means of as many values drawn with replacement, some resamples at a time."""
    rows = max(1, AT_ONCE // len(x))
    sizes = [min(rows, RESAMPLES - begun) for begun in range(0, RESAMPLES, rows)]
    return torch.cat([x[torch.randint(len(x), (size, len(x)), generator=generator)].mean(1) for size in sizes])


class Pairs:
    """Results on their way to be compared with the truth.

    Args:
        truth: image i is what result i should be.
        lpips: the learned distance, on its device; None: without.
    """

    def __init__(self, truth: Images, lpips: LPIPS | None = None) -> None:
        self.truth = truth
        self.lpips = lpips
        self.found: list[tuple[int, dict[str, float]]] = []

    @torch.no_grad()
    def update(self, places: list[int], images: Tensor) -> None:
        """Compare results.

        Args:
            places: their numbers.
            images: (B, 3, H, W) uint8.

        Raises:
            ValueError: a truth of another size, or images smaller than SSIM's window.
        """
        truth = self.truth.read(places)
        if truth.shape != images.shape:
            raise ValueError(
                f"results and truth must have one size, got {tuple(images.shape[2:])} and {tuple(truth.shape[2:])} for "
                f"images {places[:3]}"
            )
        a, b = images.double() / 255, truth.double() / 255
        columns = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
        if self.lpips is not None:
            device = next(self.lpips.parameters()).device
            columns["lpips"] = self.lpips((2 * a - 1).float().to(device), (2 * b - 1).float().to(device)).cpu()
        for row, place in enumerate(places):
            self.found.append((place, {name: float(column[row]) for name, column in columns.items()}))

    def compute(self) -> dict[str, Summary]:
        """Each measure over all images, the same in every process; all processes call it."""
        found = sorted((pair for part in gathered(self.found) for pair in part), key=lambda pair: pair[0])
        names = found[0][1] if found else {}
        return {name: summary([values[name] for _, values in found]) for name in names}

    def facts(self) -> dict[str, Any]:
        """Truth and measures, for the report."""
        how: dict[str, Any] = {
            "psnr": "dB, range 1",
            "ssim": "Gaussian window of 11, deviation 1.5, mean of channels",
            "interval_95": f"{RESAMPLES} bootstrap resamples, seed 0",
        }
        if self.lpips is not None:
            how["lpips"] = {"network": "VGG16, version 0.1", "weights_sha256": digest_of(self.lpips)}
        return {"truth": self.truth.facts(), "measures": how}
