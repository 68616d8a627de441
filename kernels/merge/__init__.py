"""Weighted sum or mean of rows by assignment: what token merging and pooling do once they know who joins whom."""

from jtok.kernels.merge.api import merge

__all__ = ["merge"]
