"""VTC-CLS: the sum of class attention over layers, and the features that are kept; the projector is the identity."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok import make_plan
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import from_features
from tests.parity.case import Case

SLUG = "vtc-cls"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, jnp.asarray(case.inputs["hidden"])
    attention = jnp.asarray(case.inputs["cls_attn"])
    tokens = from_features(x, (x.shape[1] - 1,), 1)
    # the tower ends with the layer whose features are taken: the last but one
    target = Target(p["num_layers"] - 1, (1, x.shape[1] - 1), x.shape[2])
    plan = make_plan("vtc-cls", target, tokens=p["keep"], start=p["start_layer"])
    memory, layers = {}, range(p["start_layer"], p["num_layers"] - 1)
    for layer, reducer in zip(layers, plan.sites.values(), strict=True):
        signals = Signals(class_attention=attention[layer][None])
        score = reducer.score(tokens, signals, memory) if hasattr(reducer, "score") else None
        tokens, memory = reducer(tokens, signals, memory)
    return {"score": score[0, 1:], "kept": tokens.split()[1].x}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-5)}
