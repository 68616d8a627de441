"""Greedy farthest-point selection (k-center, max-min diversity) in one call."""

from jtok.kernels.max_min_select.api import max_min_select

__all__ = ["max_min_select"]
