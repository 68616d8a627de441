"""Keep rows by index: features, positions, owners, and the keys and values of a cache."""

from jtok.kernels.gather.api import gather

__all__ = ["gather"]
