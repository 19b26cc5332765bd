"""The conformance suite, and known answers for tests: of ldmkit itself and of anyone's components.

A plug-in's test file needs two lines, and gets one test per law::

    from ldmkit.testing import Example, conformance

    test_depth_map = conformance(Example("conditioner", "depth-map", {"factor": 4}, batch=depth_maps))

where ``depth_maps(n)`` is a batch of n samples. Without pytest: :func:`run_checks`, or ``python -m ldmkit check``.
"""

from ldmkit.testing.check import Check, CheckFailed, Result
from ldmkit.testing.example import Example
from ldmkit.testing.gaussian import Gaussian, GaussianBackbone, convergence_order
from ldmkit.testing.suite import checks, conformance, run_checks

__all__ = [
    "Check",
    "CheckFailed",
    "Example",
    "Gaussian",
    "GaussianBackbone",
    "Result",
    "checks",
    "conformance",
    "convergence_order",
    "run_checks",
]
