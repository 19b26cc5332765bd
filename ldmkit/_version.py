"""The version of ldmkit; read by the build backend, so it imports nothing."""

__version__ = "0.1.0"
