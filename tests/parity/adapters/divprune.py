"""DivPrune: the order in which tokens are picked, and the distances that decide it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.vlm.divprune import DivPrune
from jtok.ops import cluster
from jtok.tokens import from_features
from tests.parity.case import Case

SLUG = "divprune"


def core(case: Case) -> dict[str, np.ndarray]:
    x = jnp.asarray(case.inputs["x"])[None]
    picks = DivPrune(case.params["ratio"]).picks(from_features(x, (x.shape[1],)))
    return {"selected": picks[0], "dist": cluster.cosine_distances(x)[0]}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
