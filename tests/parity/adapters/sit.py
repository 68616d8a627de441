"""SiT: token slimming and its reverse."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from jtok.methods.vit.sit import SiT
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import from_features
from tests.parity import timm_weights
from tests.parity.case import Case

SLUG = "sit"


def tsm(case: Case) -> dict[str, np.ndarray]:
    x, p, w = case.inputs["x"], case.params, case.inputs
    n, width = x.shape[1:]

    def MLP(name: str) -> dict:
        return {"up": timm_weights.linear(w, f"{name}.fc1"), "down": timm_weights.linear(w, f"{name}.fc2")}

    recover = {
        "norm1": timm_weights.norm(w, "rtsm_param/norm1"),
        "over_tokens": MLP("rtsm_param/mlp1"),
        "norm2": timm_weights.norm(w, "rtsm_param/norm2"),
        "over_features": MLP("rtsm_param/mlp2"),
    }
    params = {
        "norm": timm_weights.norm(w, "tsm_param/weight.0"),
        "slim": {
            "up": timm_weights.linear(w, "tsm_param/weight.1"),
            "down": timm_weights.linear(w, "tsm_param/weight.3"),
        },
        "scale": w["tsm_param/scale"].reshape(()),
        "recover": {0: recover},
    }
    target = Target(2, (1, recover["over_tokens"]["down"]["bias"].shape[0]), width, special=0)
    reducer = timm_weights.fill(lambda: SiT(target, p["keep"], 1, p["ratio"], p["rtsm_ratio"], nnx.Rngs(0)), params)

    def run(x) -> dict:
        tokens = from_features(x, (n,))
        slimmed, _ = reducer(tokens, Signals(train=True), {})
        return {"y": slimmed.x, "weights": reducer.weights(tokens), "recovered": reducer.recover[0](slimmed.x)}

    return jax.jit(run)(x)


COMPONENTS = {"tsm": tsm}
TOLERANCE = {"tsm": (0, 1e-5)}
