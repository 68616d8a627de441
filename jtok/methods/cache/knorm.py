"""Knorm: every key head keeps the slots whose keys have the smallest L2 norm.

"A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", arXiv:2406.11430, EMNLP 2024. Needs no
training and no attention: keys of low norm are those that receive much attention, and RoPE leaves norms as they are.
Text and visual tokens are treated alike; there is no window of recent tokens, so that even the newest may go. The
prompt is read in full, then the cache shrinks.
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
    """(norms of the keys in float32, slots from the smallest norm to the largest); padding is infinite and last."""
    norms = jnp.linalg.norm(jnp.moveaxis(k, 3, 2).astype(jnp.float32), axis=-1)
    norms = jnp.where(valid[None, :, None], norms, jnp.inf)
    return norms, jnp.argsort(norms, -1, stable=True).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class SmallestKeys(CachePolicy):
    """Every key head keeps the share `keep` of its row's real slots, those of smallest norm, in rising order.

    rounding: of the number that stays, at least one. prune_after: rows of fewer slots stay as they are. skip_layers:
    layers that stay as they are; a run of layers ends where they do.
    """

    keep: float
    rounding: Literal["floor", "ceil"] = "floor"
    prune_after: int = 0
    skip_layers: tuple[int, ...] = ()

    def cuts(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted({edge for layer in self.skip_layers for edge in (layer, layer + 1)}))

    def count(self, patches: int) -> int:
        """The share of them; text may give up more, or less."""
        return budget.share_of(patches, self.keep)

    def left(self, slots: int) -> int:
        """How many of a row's real slots stay."""
        if slots < self.prune_after:
            return slots
        number = slots * self.keep
        return min(slots, max(1, math.floor(number) if self.rounding == "floor" else math.ceil(number)))

    def __call__(self, cache: Cache, step: CacheStep) -> Cache:
        if not step.prefill or step.layer in self.skip_layers:
            return cache
        table = np.asarray([self.left(n) for n in range(cache.slots + 1)], np.int32)
        index = by_norm(cache.k, cache.valid)[1][..., : table.max()]
        left = jnp.asarray(table)[cache.valid.sum(1)]
        cache = take_per_head(cache, index)
        return dataclasses.replace(cache, valid=cache.valid & (jnp.arange(cache.slots) < left[:, None]))


@method(
    name="knorm",
    title="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
    paper="arXiv:2406.11430, EMNLP 2024",
    family="cache",
    training="none",
    assignment="none",
    site="cache of every layer, after the prompt",
    idea="every key head keeps its keys of smallest norm",
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
    which rounds up and leaves prompts shorter than `prune_after` and the layers `skip_layers` as they are. Raises
    UserError for another variant and for layers that the model does not have.
    """
    skipped = tuple(sorted(set(skip_layers)))
    if variant == "press":
        return Plan(cache=SmallestKeys(keep))
    if variant != "l2compress":
        raise UserError(f"knorm has no variant '{variant}': choose press or l2compress.")
    if skipped and not 0 <= skipped[0] <= skipped[-1] < target.layers:
        raise UserError(f"knorm cannot skip layers {skipped}: choose some of 0 to {target.layers - 1}.")
    return Plan(cache=SmallestKeys(keep, "ceil", prune_after, skipped))
