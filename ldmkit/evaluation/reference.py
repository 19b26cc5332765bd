r"""What generated images are compared with: the features of real ones, read once.

.. math:: \mathrm{FD} = |\mu - \mu'|^2 + \operatorname{tr}\big( \Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2} \big)

For the Fréchet distance a process keeps n, the sum and the sum of outer products of features in float64; torchmetrics
adds them up over processes and computes the distance. Kernel distance, precision and recall need the features
themselves, which are kept and exchanged where one of these is asked for. Images are never exchanged.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldmkit.evaluation.distances import ClassScore, kernel_distance, precision_recall
from ldmkit.evaluation.features import Features
from ldmkit.evaluation.sets import Images, shares
from ldmkit.training.parallel import gathered

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

METRICS = ("fd", "kd", "precision_recall", "score")
PAPER_COUNT = 50_000


class Reference:
    """Real images as one network sees them; in every process of a group alike.

    Args:
        real: the images; each process reads its share.
        features: the network.
        metrics: which of :data:`METRICS`; None: all that the network allows.
        batch: images at a time.
        subsets: of the kernel distance.
        subset_size: of the kernel distance; the count of images where there are fewer.
        neighbours: k of precision and recall.
        splits: of the score.

    Raises:
        ImportError: torchmetrics is not installed.
        ValueError: an unknown metric, a score without a head, or fewer than two images.
    """

    def __init__(
        self,
        real: Images,
        features: Features,
        metrics: Collection[str] | None = None,
        *,
        batch: int = 32,
        subsets: int = 100,
        subset_size: int = 1000,
        neighbours: int = 3,
        splits: int = 10,
    ) -> None:
        self.metrics = _checked(metrics, features)
        self.real = real
        self.features = features
        self.subsets, self.subset_size = subsets, subset_size
        self.neighbours, self.splits = neighbours, splits
        if len(real) < 2:
            raise ValueError(f"a distance of distributions needs at least 2 images of each, got {len(real)} real ones")
        first = real.read([0])
        self.size = tuple(first.shape[2:])
        seen, logits = features(first)
        self.width = seen.shape[1]
        self.classes = None if logits is None else logits.shape[1]
        self.frechet = _frechet(self.width) if "fd" in self.metrics else None
        table = Table(self.width)
        for places in shares(len(real), batch):
            found, _ = features(self.sized(real.read(places), "the reference"))
            if self.frechet is not None:
                self.frechet.update(found.double(), real=True)
            if self.compares_pairs:
                table.add(places, found)
        self.table = table.whole() if self.compares_pairs else None

    @property
    def compares_pairs(self) -> bool:
        """Whether features have to be kept."""
        return bool({"kd", "precision_recall"} & set(self.metrics))

    def sized(self, images: Tensor, what: str) -> Tensor:
        """The images, if they have the reference's size.

        Raises:
            ValueError: they do not.
        """
        if tuple(images.shape[2:]) != self.size:
            given, size = tuple(images.shape[2:]), self.size
            raise ValueError(
                f"{what} has images of {given[0]} x {given[1]}, and the reference begins with {size[0]} x {size[1]}: "
                f"bring one to the size of the other, as Folder(path, size={given}) does"
            )
        return images

    def measure(self, made: Images, batch: int = 32, count: int | None = None) -> dict[str, float]:
        """The figures of a set.

        Args:
            made: the images; each process reads its share.
            batch: images at a time.
            count: how many of them, from the first; None: all.
        """
        count = len(made) if count is None else count
        comparison = Comparison(self, count)
        for places in shares(count, batch):
            comparison.update(places, made.read(places))
        return comparison.compute()

    def notes(self, count: int) -> list[str]:
        """What must be known beside the figures of so many images."""
        found, fd = [], self.features.key("fd")
        smallest = min(count, len(self.real))
        if self.frechet is not None and smallest <= self.width:
            found.append(
                f"{fd}: {smallest} images for {self.width} features, whose covariance is singular; the distance is "
                f"biased upwards: take more than {self.width}, or compare at this count alone"
            )
        if self.frechet is not None and self.features.published and count != PAPER_COUNT:
            found.append(
                f"{fd}: published figures are of {PAPER_COUNT} images, these of {count}; the count shifts them"
            )
        if "kd" in self.metrics and smallest < self.subset_size:
            found.append(f"{self.features.key('kd')}: subsets of {smallest} instead of {self.subset_size}")
        if "score" in self.metrics and count < self.splits:
            found.append(f"{self.features.key('score')}: {count} splits instead of {self.splits}")
        return found

    def facts(self, count: int) -> dict[str, Any]:
        """Real images, network and how each figure of so many images is computed, for the report."""
        key = self.features.key
        how: dict[str, dict[str, Any]] = {
            "fd": {key("fd"): {"by": "torchmetrics", "covariance": "n - 1", "precision": "float64"}},
            "kd": {
                key("kd"): {
                    "by": "torchmetrics",
                    "kernel": "(x y / D + 1)^3, unbiased",
                    "subsets": self.subsets,
                    "subset_size": min(self.subset_size, count, len(self.real)),
                    "seed": 0,
                }
            },
            "precision_recall": {
                key("precision"): {"neighbours": self.neighbours},
                key("recall"): {"neighbours": self.neighbours},
            },
            "score": {key("score"): {"splits": min(self.splits, count), "seed": 0}},
        }
        figures = {name: value for metric in self.metrics for name, value in how[metric].items()}
        network = {**self.features.facts(), "width": self.width}
        return {"reference": self.real.facts(), "size": self.size, "features": network, "figures": figures}


class Comparison:
    """One set on its way through the network: sums, and features where pairs are compared.

    Args:
        reference: what it is compared with.
        count: images that there will be, over all processes.

    Raises:
        ValueError: fewer than two images.
    """

    def __init__(self, reference: Reference, count: int) -> None:
        if count < 2:
            raise ValueError(f"a distance of distributions needs at least 2 images of each, got {count} made ones")
        self.reference = reference
        self.count = count
        self.frechet = None if reference.frechet is None else reference.frechet.clone()
        self.table = Table(reference.width)
        classes = reference.classes if "score" in reference.metrics else None
        self.score = None if classes is None else ClassScore(count, classes, min(reference.splits, count))

    def update(self, places: list[int], images: Tensor) -> None:
        """See images.

        Args:
            places: their numbers in the set.
            images: (B, 3, H, W) uint8.
        """
        found, logits = self.reference.features(self.reference.sized(images, "the set that is judged"))
        if self.frechet is not None:
            self.frechet.update(found.double(), real=False)
        if self.reference.compares_pairs:
            self.table.add(places, found)
        if self.score is not None and logits is not None:
            self.score.update(torch.tensor(places), logits)

    def compute(self) -> dict[str, float]:
        """The figures, the same in every process; all processes call it."""
        reference, key = self.reference, self.reference.features.key
        figures: dict[str, float] = {}
        if self.frechet is not None:
            figures[key("fd")] = float(self.frechet.compute())
        made = self.table.whole() if reference.compares_pairs else None
        if reference.table is not None and made is not None:
            if "kd" in reference.metrics:
                size = min(reference.subset_size, len(made), len(reference.table))
                mean, deviation = kernel_distance(reference.table, made, reference.subsets, size)
                figures |= {key("kd"): mean, f"{key('kd')}_std": deviation}
            if "precision_recall" in reference.metrics:
                precision, recall = precision_recall(reference.table, made, reference.neighbours)
                figures |= {key("precision"): precision, key("recall"): recall}
        if self.score is not None:
            mean, deviation = self.score.compute()
            figures |= {key("score"): mean, f"{key('score')}_std": deviation}
        return figures


class Table:
    """Features by the numbers of their images.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.places: list[int] = []
        self.rows: list[Tensor] = []

    def add(self, places: list[int], rows: Tensor) -> None:
        """Keep rows (B, D)."""
        self.places += places
        self.rows.append(rows)

    def whole(self) -> Tensor:
        """The rows of all processes in the order of the numbers, (n, D), whoever read them."""
        mine = (self.places, torch.cat([torch.empty(0, self.width), *self.rows]))
        parts = gathered(mine)
        order = torch.tensor([place for places, _ in parts for place in places]).argsort()
        return torch.cat([rows for _, rows in parts])[order]


class Given(nn.Module):
    """Features handed to torchmetrics in the place of images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def _frechet(width: int) -> FrechetInceptionDistance:
    """torchmetrics' sums and formula, over given features; no image seen yet."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError("FID is computed by torchmetrics: pip install 'ldmkit[eval]'") from error
    metric = FrechetInceptionDistance(Given(width))
    for real in (True, False):  # a process without any image takes part in the sum
        metric.update(torch.empty(0, width, dtype=torch.float64), real=real)
    return metric


def _checked(metrics: Collection[str] | None, features: Features) -> tuple[str, ...]:
    if metrics is None:
        return METRICS if features.head is not None else METRICS[:-1]
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown or not metrics or isinstance(metrics, str):
        raise ValueError(f"metrics= is a choice of {', '.join(METRICS)}, got {metrics!r}")
    if "score" in metrics and features.head is None:
        raise ValueError(f"the score needs class probabilities: Features('{features.name}', network, head=...)")
    return tuple(metric for metric in METRICS if metric in metrics)
