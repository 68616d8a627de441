"""Knorm: the scores and choices of kvpress, and the order in which l2compress leaves a cache."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.cache import new_cache
from jtok.methods.cache.knorm import SmallestKeys, by_norm
from jtok.slots import CacheStep
from tests.parity.case import Case

SLUG = "knorm"


def kept(policy: SmallestKeys, k: np.ndarray, layer: int = 0) -> np.ndarray:
    """Slots [B,Hk,K] that each head keeps of recorded keys [B,Hk,L,d], in the order of its cache."""
    keys = jnp.moveaxis(jnp.asarray(k), 1, 2)[None]
    length = keys.shape[2]
    slots = jnp.broadcast_to(jnp.arange(length), (k.shape[0], length))
    values = jnp.broadcast_to(slots[None, :, :, None, None], keys.shape).astype(
        jnp.float32
    )  # which say where they were
    cache = new_cache(keys, values, slots[..., None], jnp.ones(slots.shape, bool), 0)
    after = policy(cache, CacheStep(True, layer, layer + 1))
    return np.asarray(jnp.moveaxis(after.v[0, ..., 0], 1, 2)).astype(np.int64)


def press(case: Case) -> dict[str, np.ndarray]:
    k = case.inputs["k"]
    norms, _ = by_norm(jnp.moveaxis(jnp.asarray(k), 1, 2)[None], jnp.ones((k.shape[0], k.shape[2]), bool))
    index = kept(SmallestKeys(1 - case.params["compression_ratio"]), k)
    return {"scores": -norms[0], "index": np.sort(index, -1)}


def l2compress(case: Case) -> dict[str, np.ndarray]:
    p = case.params
    policy = SmallestKeys(p["keep_ratio"], "ceil", p["prune_after"], tuple(p["skip_layers"]))
    layers = sorted(int(name.removeprefix("k_layer")) for name in case.inputs)
    return {f"index_layer{i}": kept(policy, case.inputs[f"k_layer{i}"], i) for i in layers}


COMPONENTS = {"press": press, "l2compress": l2compress}
TOLERANCE = {"press": (1e-6, 1e-6), "l2compress": (0, 0)}
