"""LLaVA-PruMerge and PruMerge+; the order of the tokens is exact."""

from __future__ import annotations

import jax.numpy as jnp

from jtok.methods.vlm import prumerge as p
from jtok.tokens import from_features

SLUG = "prumerge"
TOLERANCE = {"prumerge": (0, 1e-5), "plus": (0, 1e-5)}


def _counted(case, attention):
    """(kept by attention, step of the sample): the authors pool a batch's outliers and truncate in float64."""
    n = attention.shape[1]
    if not case.params["adaptive"]:
        return int(n * case.params["reduction_ratio"]), 0
    ratio = int(p.outliers(attention.reshape(1, -1))[0]) / attention.size
    return int(n * ratio), int(int(1 / ratio) / 3) if case.component == "plus" else 0


def run(case):
    """The functions that the reducer is made of, with the authors' counts."""
    x, q, k = (jnp.asarray(case.inputs[name]) for name in ("features", "q", "k"))
    attention = p.class_row(q, k)[:, 1:]
    rows, n = attention.shape
    top, step = _counted(case, attention)
    if case.component == "plus" and not case.params["adaptive"]:
        each = int(1 / case.params["reduction_ratio"])
        index = p.with_grid(attention, top, range(each // 2, n - 1, each))
        number = [index.shape[1]]
    else:
        index, number = p.with_sample(attention, jnp.full(rows, top), jnp.full(rows, step), n)
    index = index[:, : int(number[0])]
    reducer = p.PruMerge(n, neighbours=case.params["neighbors"])
    out = reducer.merged(from_features(x, (1, n)), k[:, 1:], attention, index, jnp.ones(index.shape, bool))
    return {"tokens": out.x, "index": index, "cls_attn": attention}


COMPONENTS = {"prumerge": run, "plus": run}
