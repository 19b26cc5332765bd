"""How good a model is: distances of distributions, nearness to the truth, speed, and a report of how it was measured.

Figures of a distribution need the extra ``eval`` and a network of features that the user has; nothing is fetched.
"""

from ldmkit.evaluation.features import Features, read_features, read_inception
from ldmkit.evaluation.measuring import evaluate, sweep
from ldmkit.evaluation.reference import Reference
from ldmkit.evaluation.report import Report, Sweep
from ldmkit.evaluation.sets import Folder, Reconstructions, Samples, Targets
from ldmkit.evaluation.throughput import Throughput, throughput

__all__ = [
    "Features",
    "Folder",
    "Reconstructions",
    "Reference",
    "Report",
    "Samples",
    "Sweep",
    "Targets",
    "Throughput",
    "evaluate",
    "read_features",
    "read_inception",
    "sweep",
    "throughput",
]
