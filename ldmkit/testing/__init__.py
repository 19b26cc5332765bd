"""Known answers for tests: of ldmkit itself and of anyone's sampler, process or backbone."""

from ldmkit.testing.gaussian import Gaussian, GaussianBackbone, convergence_order

__all__ = ["Gaussian", "GaussianBackbone", "convergence_order"]
