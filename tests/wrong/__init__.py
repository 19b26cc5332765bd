"""Wrong components, each with the one check that is meant for it, and the sound ones that they change in one place.

They live in modules, not in tests, so that they can be pickled. A test registers what is ``OFFERED``.
"""

from wrong import conditioners, networks, plans, trajectories
from wrong.catalogue import OFFERED, RIGHT, WRONG

__all__ = ["OFFERED", "RIGHT", "WRONG", "conditioners", "networks", "plans", "trajectories"]
