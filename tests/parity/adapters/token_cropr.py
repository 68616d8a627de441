"""Token Cropr: one module with its auxiliary head, and a whole tower with last-layer fusion."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from jtok.methods.vit.token_cropr import Cropr, LastLayerFusion
from jtok.plan import Plan, at_blocks
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity import timm_weights
from tests.parity.case import Case

SLUG = "token-cropr"


def module(weights: Mapping[str, np.ndarray], drop: int, heads: int = 1) -> Cropr:
    """A module with the recorded weights; its auxiliary head only if it was recorded."""
    queries, w = weights["cross_attn.queries"][0], {k.removeprefix("cross_attn."): v for k, v in weights.items()}
    width = queries.shape[1]
    norm, linear = timm_weights.norm, timm_weights.linear
    params = {"attention": {"queries": queries}}
    attention = params["attention"]
    if "q.weight" in w:
        attention["project"] = {name: {"kernel": w[f"{name}.weight"].T} for name in "qkv"}
    if "attn_norm.weight" in w:
        attention["pre_norm"] = norm(w, "attn_norm")
    if "proj.weight" in w:
        attention["out"] = linear(w, "proj")
    classes = w["head.head.weight"].shape[0] if "head.head.weight" in w else 0
    if classes:
        attention |= {"norm": norm(w, "mlp_norm"), "up": linear(w, "mlp.fc1"), "down": linear(w, "mlp.fc2")}
        params |= {"head_norm": norm(w, "head.norm"), "head": linear(w, "head.head")}
    options = classes, heads, len(queries), "pre_norm" in attention, "project" in attention

    def make() -> Cropr:
        return Cropr(width, drop, *options, rngs=nnx.Rngs(0))

    want = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))["attention"]
    unused = {} if classes else {name: want[name] for name in want if name not in attention}
    attention |= jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), unused)
    return timm_weights.fill(make, params)


def core(case: Case) -> dict[str, np.ndarray]:
    reducer = module(case.weights, case.params["pruning_rate"], case.params["num_heads"])

    def run(x) -> dict:
        tokens, signals = from_features(x, (x.shape[1] - 1,), 1), Signals(train=True)
        kept, memory = reducer(tokens, signals, {})
        memory = memory["token-cropr"]
        score = reducer.score(tokens, signals, {})
        return {"scores": score, "kept": kept.x, "pruned": memory["dropped"][0].x, "pred": memory["logits"][0]}

    return jax.jit(run)(case.inputs["x"])


def vit(case: Case) -> dict[str, np.ndarray]:
    p, depth = case.params, case.params["depth"]
    tower = timm_weights.vit(case.weights, p["num_heads"], p["patch_size"], 1e-6)
    reducers = []
    for i in range(depth - (2 if p["llf"] else 1)):
        own = {k.removeprefix(f"cropr.{i}."): v for k, v in case.weights.items() if k.startswith(f"cropr.{i}.")}
        reducers.append(module(own, p["pruning_rate"] + (i == 0)))
    sites = at_blocks(range(len(reducers)), "output", reducers)
    if p["llf"]:
        sites |= at_blocks([depth - 1], "input", [LastLayerFusion(sum(r.drop for r in reducers))])
    run = jax.jit(lambda image: tower(image, Plan(sites), hidden=True))
    out = run(case.inputs["image"].transpose(0, 2, 3, 1))
    return {"embedded": out.hidden[0], "features": out.hidden[-1], "logits": out.logits}


COMPONENTS = {"core": core, "vit": vit}
TOLERANCE = {"core": (0, 1e-5), "vit": (0, 1e-5)}
