"""Sinkhorn token pooling: the pooling and its weights."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from jtok.methods.vit.sinkhorn import Sinkhorn, unit
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity import timm_weights
from tests.parity.case import Case, difference

SLUG = "sinkhorn"


def core(case: Case) -> dict[str, np.ndarray]:
    x, v, p = case.inputs["x"], case.inputs["v"], case.params

    def make() -> Sinkhorn:
        return Sinkhorn(x.shape[2], len(v), p["eps"], p["iters"], nnx.Rngs(0))

    reducer = timm_weights.fill(make, {"vectors": v})

    def run(x, v) -> dict:
        y = reducer(from_features(x, (x.shape[1],)), Signals(), {})[0].x
        return {"y": y, "weights": reducer.weights(unit(x)), "v_after": unit(v)}

    return jax.jit(run)(x, v)


def compare(case: Case, got: dict[str, np.ndarray]) -> float:
    """The tolerance is relative to the largest entry."""
    _, atol = TOLERANCE[case.component]
    outputs = case.outputs.items()
    return max(difference(name, got[name], want, 0, atol * np.abs(want).max()) for name, want in outputs)


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
