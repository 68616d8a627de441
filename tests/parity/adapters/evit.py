"""EViT: a whole block with reorganisation inside, by both rules of counting."""

from __future__ import annotations

import numpy as np

from jtok.methods.vit.evit import EViT
from jtok.ops import schedule
from tests.parity import timm_weights
from tests.parity.case import Case

SLUG = "evit"


def block(case: Case) -> dict[str, np.ndarray]:
    p = case.params
    layer = timm_weights.block(case.weights, p["num_heads"], p["ln_eps"])
    y, owner = timm_weights.reduce_in_block(layer, case.inputs["x"], EViT(p["keep"]))
    idx = timm_weights.holders(owner, p["keep"])
    fused = np.stack([np.flatnonzero(row == p["keep"]) for row in owner])  # the slot after the kept ones
    return {"y": y, "idx": np.pad(idx, ((0, 0), (0, 1)), constant_values=-1), "compl": fused}


def official(case: Case) -> dict[str, np.ndarray]:
    p, x, out = case.params, case.inputs["x"], {}
    layer = timm_weights.block(case.weights, p["num_heads"], p["ln_eps"])
    counts = schedule.ceil_counts(x.shape[1] - 1, p["keep_rate"], 2, int(p["fuse_token"]))
    for keep, suffix in zip(counts, ("", "2"), strict=True):
        x, owner = timm_weights.reduce_in_block(layer, x, EViT(keep, p["fuse_token"]))
        out |= {f"y{suffix}": x, f"idx{suffix}": timm_weights.holders(owner, keep)}
    return out


COMPONENTS = {"block": block, "official": official}
TOLERANCE = {"block": (0, 1e-5), "official": (0, 1e-5)}
