"""The table by which published models are recognised, made from the recipes on the device ``meta``.

    python tests/parity/fingerprints.py

writes it to its place, ``ldmkit/recipes/fingerprints.json``; a test holds what is there.
"""

import json
from pathlib import Path

import torch

import ldmkit.recipes
from ldmkit.parts import Part
from ldmkit.recipes.fingerprints import TABLE, fingerprint
from ldmkit.registry import build_part


def shapes(kind: str, part: Part) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a part's tensors, as a file of the original has them."""
    with torch.device("meta"):
        tensors = build_part(kind, part).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if name != "scale"}


def table() -> dict:
    """What ``ldmkit/recipes/fingerprints.json`` holds."""
    sketches: dict[str, str] = {}

    def digest(kind: str, part: Part) -> str:
        found = fingerprint(shapes(kind, part))
        sketches[found.digest] = " ".join(found.sketch)
        return found.digest

    recipes = {name: ldmkit.recipe(name) for name in ldmkit.recipes.PUBLISHED}
    return {
        "recipes": {
            name: {
                "backbone": digest("backbone", recipe.backbone),
                "first_stage": digest("first-stage", recipe.first_stage),
            }
            for name, recipe in recipes.items()
        },
        "first_stages": {name: digest("first-stage", part) for name, part in ldmkit.recipes.FIRST_STAGES.items()},
        "sketches": dict(sorted(sketches.items())),
    }


if __name__ == "__main__":
    place = Path(ldmkit.recipes.__file__).with_name(TABLE)
    place.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
