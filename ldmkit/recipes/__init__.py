"""The published models, and the bundled one, as plain data: one function per recipe, grouped by family.

A published model's notes have the keys of :data:`ldmkit.recipes.notes.KEYS`, all of them. First stages alone are no
models: :func:`first_stage` gives them as parts. Nothing here imports torch.
"""

from importlib import import_module

from ldmkit.parts import Recipe
from ldmkit.recipes.first_stages import FIRST_STAGES, first_stage

__all__ = ["FIRST_STAGES", "PUBLISHED", "first_stage", "recipe"]

PUBLISHED = (
    "celebahq",
    "ffhq",
    "lsun-beds",
    "lsun-churches",
    "cin256",
    "cin256-v2",
    "text2img256",
    "txt2img-1p4b",
    "layout2img-openimages256",
    "rdm-768",
    "semantic-synthesis256",
    "semantic-synthesis512",
    "bsr-sr",
    "inpainting-big",
    "sd-1",
    "sd-1-inpainting",
    "sd-2-base",
    "sd-2-v",
    "sd-2-inpainting",
    "sd-2-depth",
    "sd-x4-upscaler",
    "sd-2-unclip-h",
    "sd-2-unclip-l",
)
"""The names of the published models' recipes; :mod:`ldmkit.builtin` says where each lives."""


def recipe(name: str) -> Recipe:
    """A registered recipe by name.

    Args:
        name: one of ``ldmkit.names("recipe")``, or ``name@distribution``.

    Raises:
        UnknownComponentError: there is no such recipe; the message names the nearest.
    """
    found: Recipe = import_module("ldmkit.registry").build("recipe", name)
    return found
