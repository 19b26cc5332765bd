"""Samplers: from noise to a latent along a list of levels.

A sampler is a frozen record of hyper-parameters and one body, ``sampler(denoise, x, levels, noise, at_stop)``. History
lives in local variables and nothing is written after construction, so one sampler serves any number of threads.
Coefficients are computed on the host before the loop; the loop never reads anything back.
"""

from ldmkit.samplers.contract import AtStop, Checking, Sampler, blend, in_turn
from ldmkit.samplers.ddim_inversion import reverse

__all__ = ["AtStop", "Checking", "Sampler", "blend", "in_turn", "reverse"]
