"""Expedit: clustering, the labels, and both ways back to the grid (as in the code for Segment Anything)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok import kernels
from jtok.methods.vit.expedit import reconstruct
from jtok.ops import cluster
from tests.parity.case import Case

SLUG = "expedit"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x, y = case.params, jnp.asarray(case.inputs["x"]), jnp.asarray(case.inputs["y"])
    grid, t = x.shape[1:3], p["temperature"]
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    cells = tuple(p["num_clusters"])
    clusters, _, _ = cluster.local_soft_k_means(flat, grid, cells, p["n_iters"], t, p["window_size"])
    labels = kernels.nearest(flat, clusters, metric="l2")[1]
    return {
        "clusters": clusters,
        "hard_labels": labels,
        "reconstructed": reconstruct(flat, clusters, y, p["k"], t, clamp=True),
        "naive_unpooled": kernels.gather(y, labels),
    }


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-4)}
