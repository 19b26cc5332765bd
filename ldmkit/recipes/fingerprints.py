r"""Which published model a file holds, told from the names and shapes of its tensors alone.

A *fingerprint* of a set of tensors is a digest, equal for equal sets, and a sketch: the smallest hashes of its members,
whose overlap with another sketch estimates :math:`|A \cap B| / |A \cup B|`. The table of the published models lies
beside this module, so that nothing is built and torch is not needed; a test holds it to the recipes.

Head counts, schedules and predictions change no shape: models that differ in them alone are told apart by nobody and
are named together.

Source: Broder 1997, "On the resemblance and containment of documents" (the sketch).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

Shapes = Mapping[str, Sequence[int]]

TABLE = "fingerprints.json"
BACKBONE, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
ALIKE = 0.8
"""From which estimated share of common tensors a model is named although none fits exactly."""

_SKETCH = 32
_AUTOENCODER = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")


@dataclass(frozen=True)
class Fingerprint:
    """What a set of named shapes is recognised by.

    Args:
        digest: equal for equal sets.
        sketch: the smallest hashes of its members, in order.
    """

    digest: str
    sketch: tuple[str, ...]

    def resemblance(self, other: Fingerprint) -> float:
        """The estimated share of common members, in [0, 1]; 1 exactly where the sets are equal."""
        if self.digest == other.digest:
            return 1.0
        smallest = sorted({*self.sketch, *other.sketch})[:_SKETCH]
        common = {*self.sketch} & {*other.sketch}
        estimate = sum(member in common for member in smallest) / max(1, len(smallest))
        return min(estimate, 1 - 1e-3)


def fingerprint(shapes: Shapes) -> Fingerprint:
    """The fingerprint of tensors by name, in any order."""
    members = sorted(f"{name} {[int(side) for side in shape]}" for name, shape in shapes.items())
    hashes = sorted(sha256(member.encode()).hexdigest()[:8] for member in members)
    return Fingerprint(sha256("\n".join(members).encode()).hexdigest()[:16], tuple(hashes[:_SKETCH]))


def candidates(shapes: Shapes) -> list[str]:
    """The published models whose file this may be.

    Args:
        shapes: name -> shape of every tensor of the file, in the original's names; those of text encoders, schedules
            and averaged weights make no difference.

    Returns:
        Names of recipes: those whose network and first stage have exactly these tensors; where there are none, those
        with the same network; where there are none, those nearest to it, best first. Empty for another model.
    """
    parts = _table()["recipes"]
    networks = _resemblances(_below(shapes, BACKBONE), {name: parts[name]["backbone"] for name in parts})
    stages = _resemblances(_below(shapes, FIRST_STAGE), {name: parts[name]["first_stage"] for name in parts})
    same = [name for name, share in networks.items() if share == 1]
    return [name for name in same if stages[name] == 1] or same or _nearest(networks)


def first_stage_candidates(shapes: Shapes) -> list[str]:
    """The published first stages whose tensors these are: of a file of its own, or inside that of a whole model.

    Returns:
        Names for :func:`ldmkit.recipes.first_stage`: the one with exactly these tensors, else the nearest, best first.
    """
    inside = _below(shapes, FIRST_STAGE)
    stage = inside or {name: shape for name, shape in shapes.items() if name.startswith(_AUTOENCODER)}
    shares = _resemblances(stage, _table()["first_stages"])
    return [name for name, share in shares.items() if share == 1] or _nearest(shares)


def _below(shapes: Shapes, prefix: str) -> dict[str, Sequence[int]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _resemblances(shapes: Shapes, digests: Mapping[str, str]) -> dict[str, float]:
    """Name -> how much of what its digest stands for these tensors share; nothing resembles none."""
    mine, sketches = fingerprint(shapes), _table()["sketches"]
    known = {name: Fingerprint(digest, tuple(sketches[digest].split())) for name, digest in digests.items()}
    return {name: mine.resemblance(other) if shapes else 0.0 for name, other in known.items()}


def _nearest(shares: Mapping[str, float]) -> list[str]:
    return sorted((name for name, share in shares.items() if share >= ALIKE), key=lambda name: -shares[name])


@cache
def _table() -> Mapping[str, Any]:
    """``recipes``: name -> digest of its backbone and first stage; ``first_stages``: name -> digest; ``sketches``."""
    read: Mapping[str, Any] = json.loads(files("ldmkit.recipes").joinpath(TABLE).read_text(encoding="utf-8"))
    return read
