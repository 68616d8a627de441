"""Adaptive average pooling of a square patch grid."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from jtok.ops.cluster import adaptive_average_pool
from tests.parity.case import Case

SLUG = "avgpool"


def core(case: Case) -> dict[str, np.ndarray]:
    x = case.inputs["x"]
    side = math.isqrt(x.shape[1])
    return {"tokens": np.asarray(adaptive_average_pool(jnp.asarray(x), (side, side), tuple(case.params["out_shape"])))}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0.0, 1e-6)}
