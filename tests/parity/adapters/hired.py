"""HiRED: budgets of crops and what is kept of them, from recorded attention of two layers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.vlm.hired import EARLY, LATE, HiREDCrops, Observer
from jtok.models.decoder.sequence import fold
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity.case import Case

SLUG = "hired"


def core(case: Case) -> dict[str, np.ndarray]:
    first, last = (jnp.asarray(case.inputs[f"cls_attn_{name}"]) for name in ("first", "last"))
    parts, n = first.shape[0], first.shape[2] - 1
    tokens = from_features(jnp.zeros((parts, n + 1, 1)), (n,), 1)
    for name, attention in ((EARLY, first), (LATE, last)):
        tokens, _ = Observer(name)(tokens, Signals(class_attention=attention), {})
    row = fold(tokens.split()[1], parts)
    reducer = HiREDCrops(case.params["token_budget_rate"], case.params["alpha"])
    kept, _ = reducer(row, Signals(crop_image=jnp.zeros((1, parts * n), jnp.int32)), {})
    budgets = reducer.budgets(row.carry[EARLY].reshape(1, parts, n), jnp.zeros((1, parts), jnp.int32))
    assert int(kept.mask().sum()) == int(budgets.sum()) <= kept.count
    return {"mask": np.asarray(kept.owner).reshape(parts, n) >= 0, "sub_budgets": budgets[0, 1:]}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 0)}
