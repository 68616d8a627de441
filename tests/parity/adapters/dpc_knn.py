"""DPC-KNN: centres, groups and their weighted means."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok import kernels
from jtok.methods.vit.dpc_knn import weighted_mean
from jtok.ops import cluster
from tests.parity.case import Case

SLUG = "dpc-knn"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, jnp.asarray(case.inputs["x"])
    noise = jnp.asarray(case.inputs["noise"])
    centre, assign = cluster.density_peaks(x, p["num_clusters"], p["k"], noise=noise)
    weight = jnp.ones(x.shape[:2])
    if p["weighted"]:
        weight = jnp.exp(x @ case.weights["score.weight"][0] + case.weights["score.bias"])
    y, share = weighted_mean(x, assign, p["num_clusters"], weight)
    return {
        "y": y,
        "idx_token": assign,  # the grid starts with one place per token, so they follow the assignment
        "agg_weight": share[..., None],
        "center_idx": centre,
        "assignment": assign,
        "center_feats": kernels.gather(x, centre),
    }


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
