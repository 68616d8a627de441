"""Token Pooling: k-means, against Lloyd's rounds recorded in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.ops import cluster
from tests.parity.case import Case

SLUG = "token-pooling"


def core(case: Case) -> dict[str, np.ndarray]:
    p = case.params
    x = jnp.asarray(case.inputs["x"], jnp.float32)[None]
    start = jnp.asarray(case.inputs["init_index"], jnp.int32)[None]
    weight = jnp.asarray(case.inputs["weight"], jnp.float32)[None] if p["weighted"] else None
    centres, assign = cluster.k_means(x, start, p["iters"], weight=weight)
    centres, assign = np.asarray(centres[0], np.float64), np.asarray(assign[0])
    squared = ((case.inputs["x"] - centres[assign]) ** 2).sum(-1)
    heaviness = case.inputs["weight"] if p["weighted"] else 1.0
    return {"centers": centres, "assignment": assign, "inertia": (heaviness * squared).sum()}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (1e-5, 1e-5)}
