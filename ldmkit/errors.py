"""The exceptions ldmkit raises on purpose; everything here derives from :class:`LdmkitError`.

Bad arguments to one component are plain ``ValueError`` / ``TypeError``; the classes below name failures that
involve a registry, a composition or a file, so that a program can tell them apart. This module imports nothing.
"""


class LdmkitError(Exception):
    """Base of every error that ldmkit defines."""


class CompositionError(LdmkitError, ValueError):
    """Two components that do not fit each other; the message names both and the fix."""


class BatchError(LdmkitError, KeyError):
    """A batch that lacks what a conditioner reads, or holds what nobody reads; before any computation."""

    # KeyError shows the repr of its message, which buries a sentence in quotes and escapes.
    __str__ = Exception.__str__


class NonFiniteError(LdmkitError, ValueError):
    """A network gave values that are not finite; the message names the step and the images."""


class CheckpointError(LdmkitError):
    """A file that cannot be read as a model: damaged, hostile, incomplete or of another model."""


class UnknownComponentError(LdmkitError, KeyError):
    """No component of that kind and name; the message lists near names and the plug-ins that failed to load."""

    # KeyError shows the repr of its message, which buries a sentence in quotes and escapes.
    __str__ = Exception.__str__


class AmbiguousComponentError(LdmkitError, LookupError):
    """Several distributions offer the name; ``name@distribution`` says which one is meant."""


class OptionError(LdmkitError, TypeError):
    """Options that a component's factory does not take, or required ones that are missing."""


class FactoryError(LdmkitError, ImportError):
    """The factory of one component cannot be imported; ``__cause__`` is what its import raised."""


class PluginError(LdmkitError):
    """A plug-in, or a registration by hand, that breaks the registry's rules."""


class ReservedNameError(PluginError, ValueError):
    """A name that a built-in component already has; built-ins cannot be replaced by name."""


class PluginLoadError(PluginError):
    """A plug-in failed to load while ``LDMKIT_STRICT=1``; ``__cause__`` is what it raised."""


class LdmkitPluginWarning(UserWarning):
    """A plug-in was skipped because it is broken; everything else still works."""
