"""Keep attended: decode with only the visual slots that the prompt's last token attends to most.

A plain baseline for decoding with fewer keys, not from a paper. The prompt is read in full; then every run of layers
keeps its own selection, by the attention of the last token, mean over heads and layers. Text stays.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jtok.cache import Cache, compact, drop
from jtok.ops import budget, select
from jtok.plan import Plan
from jtok.registry import method
from jtok.slots import CachePolicy, CacheStep
from jtok.target import Target


@dataclasses.dataclass(frozen=True)
class KeepAttended(CachePolicy):
    """Keeps the `keep` visual slots that the latest token attends to most, mean over the heads and layers of a cache.

    The cache shrinks by what was dropped after the prompt; later calls have nothing left to drop, so the selection is
    that of the prompt's last token.
    """

    keep: int
    reads = ("last_token_attention",)

    def count(self, patches: int) -> int:
        return min(self.keep, patches)

    def __call__(self, cache: Cache, step: CacheStep) -> Cache:
        excess = cache.visuals - self.keep
        if not step.prefill or excess <= 0:
            return cache
        visual = cache.visual & cache.valid
        index = select.top_k(cache.attention.mean(0), self.keep, valid=visual)
        stays = jnp.zeros_like(visual).at[jnp.arange(index.shape[0])[:, None], index].set(True)
        # nothing reads the attention of later tokens; without the field it is not computed
        cache = dataclasses.replace(drop(cache, visual & ~stays), visuals=self.keep, attention=None)
        return compact(cache, cache.slots - excess)


@method(
    name="keep-attended",
    title="Keep attended",
    paper="baseline",
    family="baseline",
    training="none",
    assignment="none",
    site="cache, after the prompt",
    idea="keep the visual slots that the last token attends to",
)
def plan(target: Target, keep: float = 0.5, tokens: int | None = None) -> Plan:
    """`tokens` (else `keep` of them) visual slots stay in every layer's cache."""
    return Plan(cache=KeepAttended(budget.visual_tokens(target.patches, keep, tokens)))
