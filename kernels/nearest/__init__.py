"""For every row of one set the best match in another: bipartite matching, k-means, vector quantisation, duplicates."""

from jtok.kernels.nearest.api import nearest

__all__ = ["nearest"]
