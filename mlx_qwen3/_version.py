"""The version, alone in a module so that the build backend reads it without importing."""

__version__ = "0.1.0"
