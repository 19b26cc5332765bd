r"""How far two sets of features are apart, beside the Fréchet distance: kernel distance, precision and recall, score.

.. math::

    \mathrm{KD} = \widehat{\mathrm{MMD}}{}^2_k, \quad k(x, y) = (x^\top y / D + 1)^3, \qquad
    \log \mathrm{IS} = \operatorname{mean}_i \mathrm{KL}\big( p(c \mid x_i) \,\|\, p(c) \big)

Kernel distance, precision and recall compare pairs, so that no sums suffice: processes exchange features, which are a
thousandth of the images. The score needs sums alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldmkit.training.parallel import gathered, rank, summed, world

AT_ONCE = 2**24
"""Distances that are in memory at a time."""

SLACK = 1e-12
"""Rounding of a squared distance in float64, in units of the squared norms."""


def kernel_distance(real: Tensor, made: Tensor, subsets: int, size: int, seed: int = 0) -> tuple[float, float]:
    """The unbiased kernel distance of random subsets: its mean and its deviation over subsets.

    Args:
        real: (n, D).
        made: (m, D).
        subsets: how many are drawn.
        size: of each, at most n and m, at least 2.
        seed: of the draws.

    Raises:
        ImportError: torchmetrics is not installed.
        ValueError: a size that cannot be drawn.

    Source: Binkowski et al. 2018 (arXiv 1801.01401), eq. 4 and section 4.
    """
    try:
        from torchmetrics.image.kid import poly_mmd
    except ImportError as error:
        raise ImportError("KID is computed by torchmetrics: pip install 'ldmkit[eval]'") from error
    if not 2 <= size <= min(len(real), len(made)):
        raise ValueError(f"subsets of {size} cannot be drawn from {len(real)} and {len(made)} images")
    generator = torch.Generator().manual_seed(seed)
    real, made = real.double(), made.double()
    found = []
    for _ in range(subsets):
        one, other = (x[torch.randperm(len(x), generator=generator)[:size]] for x in (real, made))
        found.append(poly_mmd(one, other))
    values = torch.stack(found)
    return float(values.mean()), float(values.std(correction=0))


def precision_recall(real: Tensor, made: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """The share of what is made that lies among the real, and of the real that lies among what is made.

    A point lies among a set if it is no farther from one of its points than that one's k-th neighbour in the set. Every
    process holds all features and looks at its share of the points.

    Args:
        real: (n, D), the same in every process.
        made: (m, D), the same in every process.
        neighbours: k, less than n and m.

    Raises:
        ValueError: too few points.

    Source: Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2.
    """
    if not 1 <= neighbours < min(len(real), len(made)):
        raise ValueError(
            f"precision and recall need more images than the {neighbours} neighbours, got {len(real)} and {len(made)}"
        )
    centre = real.double().mean(dim=0)
    real, made = real.double() - centre, made.double() - centre
    inside = [_covered(made, real, _radii(real, neighbours)), _covered(real, made, _radii(made, neighbours))]
    precise, recalled = summed(torch.tensor(inside, dtype=torch.float64))
    return precise / len(made), recalled / len(real)


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """(n,): the squared distance of each point to its k-th neighbour, the share of each process computed there."""
    mine = points[rank() :: world()]
    rows = max(1, AT_ONCE // len(points))
    chunks = (mine[start : start + rows] for start in range(0, len(mine), rows))
    parts = [_squared(part, points).kthvalue(neighbours + 1).values for part in chunks]  # a point itself is the first
    whole = points.new_empty(len(points))
    for other, found in enumerate(gathered(torch.cat([points.new_empty(0), *parts]))):
        whole[other :: world()] = found
    return whole


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> int:
    """How many of this process's share of the points lie in the ball of any centre."""
    rows, mine, count = max(1, AT_ONCE // len(centres)), points[rank() :: world()], 0
    reach = radii + SLACK * centres.square().sum(dim=1)
    for start in range(0, len(mine), rows):
        part = mine[start : start + rows]
        near = _squared(part, centres) <= reach + SLACK * part.square().sum(1, True)
        count += int(near.any(dim=1).sum())
    return count


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) squared distances."""
    return (a.square().sum(1, True) + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


class ClassScore:
    """The score of class probabilities, from sums over each split: (n, sum of p, sum of p log p).

    Images are dealt to equal splits by a permutation of their numbers, so that data sorted by class do no harm.

    Args:
        count: how many images there will be, over all processes.
        classes: K.
        splits: the score is the mean over so many.
        seed: of the permutation.

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 4.
    """

    def __init__(self, count: int, classes: int, splits: int, seed: int = 0) -> None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        self.split = order * splits // count
        self.sums = torch.zeros(splits, classes + 2, dtype=torch.float64)

    def update(self, places: Tensor, logits: Tensor) -> None:
        """Count images.

        Args:
            places: (B,) their numbers.
            logits: (B, K).
        """
        log_p = logits.double().log_softmax(dim=1)
        p = log_p.exp()
        rows = torch.cat([p, (p * log_p).sum(1, True), torch.ones(len(p), 1, dtype=p.dtype)], dim=1)
        self.sums.index_add_(0, self.split[places], rows)

    def compute(self) -> tuple[float, float]:
        """The mean and the deviation over splits, of all processes together."""
        sums = torch.tensor(summed(self.sums.flatten().clone()), dtype=torch.float64).view_as(self.sums)
        count = sums[:, -1:]
        mean = sums[:, :-2] / count
        inner = sums[:, -2] / count[:, 0]
        scores = (inner - torch.special.xlogy(mean, mean).sum(dim=1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))
