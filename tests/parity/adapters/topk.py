"""Top-K: a whole block with pruning inside."""

from __future__ import annotations

import numpy as np

from jtok.methods.vit.topk import TopK
from tests.parity import timm_weights
from tests.parity.case import Case

SLUG = "topk"


def block(case: Case) -> dict[str, np.ndarray]:
    p = case.params
    layer = timm_weights.block(case.weights, p["num_heads"], p["ln_eps"])
    y, owner = timm_weights.reduce_in_block(layer, case.inputs["x"], TopK(p["keep"]))
    return {"y": y, "idx": timm_weights.holders(owner, p["keep"])}


COMPONENTS = {"block": block}
TOLERANCE = {"block": (0, 1e-5)}
