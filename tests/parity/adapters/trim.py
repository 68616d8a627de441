"""TRIM: kept features and the mean of the rest, by a given share and by outliers of the batch."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.vlm.trim import TRIM
from jtok.models.towers.clip_text import SharedSpace
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity.case import Case

SLUG = "trim"


def core(case: Case) -> dict[str, np.ndarray]:
    p = case.params
    x, scale, bias, projection = (jnp.asarray(case.inputs[name]) for name in ("x", "ln_weight", "ln_bias", "proj"))
    n = x.shape[1]
    share = (int(n * p["k"]) + 1) / n if p["k"] != -1 else 1.0  # ours counts the mean of the dropped too
    space = SharedSpace(scale, bias, projection.T, p["ln_eps"])
    reducer = TRIM(share, "batch" if p["k"] == -1 else "none", space)
    out, _ = reducer(from_features(x, (n,)), Signals(text_embedding=jnp.asarray(case.inputs["text"])), {})
    live = np.asarray(out.mask())
    assert out.count == reducer.count(n) and (live.sum(1) == live[0].sum()).all()
    return {"tokens": np.asarray(out.x)[live].reshape(x.shape[0], -1, x.shape[2]), "count": live[0].sum()}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
