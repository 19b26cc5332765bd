"""The published models, and the bundled one, as plain data: one function per recipe."""

from importlib import import_module

from ldmkit.parts import Recipe


def recipe(name: str) -> Recipe:
    """A registered recipe by name.

    Args:
        name: one of ``ldmkit.names("recipe")``, or ``name@distribution``.

    Raises:
        UnknownComponentError: there is no such recipe; the message names the nearest.
    """
    found: Recipe = import_module("ldmkit.registry").build("recipe", name)
    return found
