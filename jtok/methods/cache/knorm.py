"""Knorm: every KV head keeps the slots whose keys have the smallest L2 norm.

"A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", arXiv:2406.11430, EMNLP 2024. Needs no
training and no attention: keys of low norm tend to receive high attention, and RoPE does not change norms. Text and
visual tokens are treated alike; no window of recent tokens is protected, so even the newest may be evicted. The prompt
is read in full, then the cache shrinks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.cache import Cache, take_per_head
from jtok.errors import UserError
from jtok.ops import budget
from jtok.plan import Plan
from jtok.registry import method
from jtok.slots import CachePolicy, CacheStep
from jtok.target import Target


def by_norm(
    k: Float[Array, "layers B S Hk Dh"], valid: Bool[Array, "B S"]
) -> tuple[Float[Array, "layers B Hk S"], Int[Array, "layers B Hk S"]]:
    """(norms of the keys in float32, slots by increasing norm); padding has infinite norm and comes last."""
    norms = jnp.linalg.norm(jnp.moveaxis(k, 3, 2).astype(jnp.float32), axis=-1)
    norms = jnp.where(valid[None, :, None], norms, jnp.inf)
    return norms, jnp.argsort(norms, -1, stable=True).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class SmallestKeys(CachePolicy):
    """Every KV head keeps the share `keep` of its row's real slots, those of smallest norm, in increasing order.

    rounding: of the number kept, which is at least one. prune_after: rows with fewer slots are not pruned. skip_layers:
    layers that are not pruned; each has a cache of its own.
    """

    keep: float
    rounding: Literal["floor", "ceil"] = "floor"
    prune_after: int = 0
    skip_layers: tuple[int, ...] = ()

    def cuts(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted({edge for layer in self.skip_layers for edge in (layer, layer + 1)}))

    def count(self, patches: int) -> int:
        """The share of the patches; the actual split between text and image may differ."""
        return budget.share_of(patches, self.keep)

    def kept(self, slots: int) -> int:
        """How many of a row's real slots are kept."""
        if slots < self.prune_after:
            return slots
        number = slots * self.keep
        return min(slots, max(1, math.floor(number) if self.rounding == "floor" else math.ceil(number)))

    def __call__(self, cache: Cache, step: CacheStep) -> Cache:
        if not step.prefill or step.layer in self.skip_layers:
            return cache
        table = np.asarray([self.kept(n) for n in range(cache.slots + 1)], np.int32)
        index = by_norm(cache.k, cache.valid)[1][..., : table.max()]
        kept = jnp.asarray(table)[cache.valid.sum(1)]
        cache = take_per_head(cache, index)
        return dataclasses.replace(cache, valid=cache.valid & (jnp.arange(cache.slots) < kept[:, None]))


@method(
    name="knorm",
    title="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
    paper="arXiv:2406.11430, EMNLP 2024",
    family="cache",
    training="none",
    assignment="none",
    site="KV cache of every layer, after the prompt",
    idea="each KV head keeps the keys of smallest norm",
)
def plan(
    target: Target,
    keep: float = 0.5,
    variant: Literal["press", "l2compress"] = "press",
    prune_after: int = 2048,
    skip_layers: Sequence[int] = (),
) -> Plan:
    """keep: share of all slots, text included.

    variant: `press` is NVIDIA's kvpress, which rounds down and prunes every layer; `l2compress` is the authors' code,
    which rounds up and prunes neither prompts shorter than `prune_after` nor the layers `skip_layers`. Raises UserError
    for another variant and for layers that the model does not have.
    """
    skipped = tuple(sorted(set(skip_layers)))
    if variant == "press":
        return Plan(cache=SmallestKeys(keep))
    if variant != "l2compress":
        raise UserError(f"knorm has no variant '{variant}': choose press or l2compress.")
    if skipped and not 0 <= skipped[0] <= skipped[-1] < target.layers:
        raise UserError(f"knorm cannot skip layers {skipped}: choose from 0 to {target.layers - 1}.")
    return Plan(cache=SmallestKeys(keep, "ceil", prune_after, skipped))
