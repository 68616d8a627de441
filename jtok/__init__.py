"""jtok: visual token reduction and adaptive image tokenizers in JAX."""

from jtok.version import __version__

__all__ = ["__version__"]
