"""MQT: the query transformer at several counts. Its table of places is computed, not read, and compared."""

from __future__ import annotations

import jax
import numpy as np

from jtok.methods.catalogue import make_plan
from jtok.target import Target
from jtok.tokens import from_features
from tests.parity.case import Case
from tests.parity.projectors import loaded

SLUG = "mqt"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, case.inputs["x"]
    target = Target(1, tuple(p["tgt_size"]), p["kv_dim"], layers=1, language_width=p["embed_dim"])
    plan = make_plan("mqt", target, queries=p["grid_size"] ** 2, heads=p["num_heads"])
    module = loaded(plan, case.weights)
    at, patches = module.places(target.grid)
    np.testing.assert_array_equal(at, case.weights["pos_embed"])

    def tokens(m: int):
        return jax.jit(lambda x: module(from_features(x, target.grid), count=m).x)(x)

    return {f"tokens_m{m}": tokens(m) for m in p["m"]} | {"pos_embed_resized": patches}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0.0, 1e-5)}
