"""PatchMerger: the module, with and without scaled logits."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from jtok.methods.vit.patchmerger import PatchMerger
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity import timm_weights
from tests.parity.case import Case

SLUG = "patchmerger"


def core(case: Case) -> dict[str, np.ndarray]:
    x, p = case.inputs["x"], case.params
    n, width = x.shape[1:]
    params = {"queries": case.weights["queries"], "norm": timm_weights.norm(case.weights, "norm")}

    def make() -> PatchMerger:
        return PatchMerger(width, p["out_tokens"], p["scaled"], nnx.Rngs(0))

    reducer = timm_weights.fill(make, params)

    def run(x) -> dict:
        tokens = from_features(x, (n,))
        return {"y": reducer(tokens, Signals(), {})[0].x, "attn": reducer.weights(tokens)[0]}

    return jax.jit(run)(x)


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
