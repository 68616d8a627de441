"""K-Medoids as evaluated in arXiv:2308.04657."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok import kernels
from jtok.ops import cluster, select
from tests.parity.case import Case

SLUG = "kmedoids"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, jnp.asarray(case.inputs["x"])
    distance = cluster.distances(x)
    if p["weighted"]:
        weight = jnp.asarray(case.inputs["weight"]).reshape(x.shape[:2])
        start = select.top_k(weight, p["k"], order="score")
    else:
        weight = None
        first = jnp.broadcast_to(jnp.asarray(case.inputs["init_index"], jnp.int32), x.shape[:1])
        start = cluster.spread_by_maximum(distance, p["k"], first)
    medoid, assign = cluster.k_medoids(distance, start, p["iters"], weight=weight)
    return {"centers": kernels.gather(x, medoid), "center_idx": medoid, "assignment": assign}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
