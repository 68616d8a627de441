"""The site `decode`: what stays in the cache while an answer is written.

A cache policy is called for the cache of each run of layers: once when the prompt has been read (`first`), before room
for the answer is added, and again behind every block of generated tokens. It may mark slots as not valid, and change
what they hold; when called first it may hand over a smaller cache (`cache.compact`). Later calls keep all shapes, and
slots that are not valid stay so.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jtok.errors import UserError
from jtok.models.decoder.cache import Cache, compact
from jtok.ops import select
from jtok.plan import Plan

#: What a policy may read: `Cache.attention` is there for those that name it.
READS = ("last_token_attention",)


class CachePolicy:
    """`(cache, first) -> cache`, pure and batched; a frozen dataclass, since programs are compiled for it."""

    #: Of `READS`.
    reads: tuple[str, ...] = ()

    def count(self, patches: int) -> int:
        """Visual slots left, at most."""
        return patches

    def __call__(self, cache: Cache, first: bool) -> Cache:
        raise TypeError(f"{type(self).__name__} must define __call__(cache, first).")


@dataclasses.dataclass(frozen=True)
class KeepAttended(CachePolicy):
    """Keeps the `keep` visual slots that the latest token attends to most, mean over the heads and layers of a cache.

    Text stays. The cache that is handed over is smaller by what was dropped; later calls find nothing more to drop, so
    that this is the choice of the prompt's last token. A plain baseline for decoding with fewer keys, of no paper.
    """

    keep: int
    reads = ("last_token_attention",)

    def count(self, patches: int) -> int:
        return min(self.keep, patches)

    def __call__(self, cache: Cache, first: bool) -> Cache:
        less = cache.visuals - self.keep
        if not first or less <= 0:
            return cache
        visual = cache.visual & cache.valid
        index = select.top_k(cache.attention.mean(0), self.keep, valid=visual)
        stays = jnp.zeros_like(visual).at[jnp.arange(index.shape[0])[:, None], index].set(True)
        cache = dataclasses.replace(drop(cache, visual & ~stays), visuals=self.keep)
        return compact(cache, cache.slots - less)


def drop(cache: Cache, slots: Bool[Array, "B S"]) -> Cache:
    """The cache in which nobody attends to these slots any more."""
    return dataclasses.replace(cache, valid=cache.valid & ~slots)


def check_decode(plan: Plan) -> None:
    """Raises UserError for a cache policy at another site than `decode`, anything else there, or unknown `reads`."""
    for site, one in plan.sites.items():
        if isinstance(one, CachePolicy) != (site == "decode"):
            raise UserError(f"{type(one).__name__} cannot stand at '{site}': cache policies stand at 'decode', alone.")
    unknown = set(plan.sites["decode"].reads) - set(READS) if "decode" in plan.sites else set()
    if unknown:
        raise UserError(f"the policy at 'decode' reads {', '.join(sorted(unknown))}; it may read {', '.join(READS)}.")
