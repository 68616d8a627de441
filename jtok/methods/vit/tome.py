"""ToMe: merge a few of the most similar tokens in every block.

"Token Merging: Your ViT But Faster", arXiv:2210.09461, ICLR 2023. Needs no training. It is placed between the attention
and the MLP of every block, compares the block's keys, averaged over heads, and merges r pairs into size-weighted means.
From then on attention is proportional: log(size) is added to the logits of each key.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Unpack

import jax
import jax.numpy as jnp

from jtok.errors import UserError
from jtok.ops import merge, schedule
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ToMe(Reducer):
    """Merges `r` tokens by bipartite matching, into every k-th token, or r random ones into the rest.

    The last two are the paper's ablations; here they exclude special tokens, unlike the reference code.
    """

    r: int
    matching: Literal["bipartite", "kth", "random"] = "bipartite"
    proportional: bool = True
    reads = ("keys",)

    def count(self, patches: int) -> int:
        """The k-th matching leaves floor(patches / k), with k chosen to remove about r."""
        if self.matching == "kth":
            return patches // self._k(patches)
        return patches - (min(self.r, patches // 2) if self.matching == "bipartite" else min(self.r, patches - 1))

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        metric = s.keys.astype(jnp.float32).mean(2)
        if self.matching == "bipartite":
            merged = tokens.join(merge.bipartite(metric, self.r, tokens.special, tokens.valid))
        else:
            special, patches = tokens.split()
            metric = metric[:, tokens.special :]
            merged = special.concat(patches.join(self._forced(metric, s)))
        return merged.replace(proportional=self.proportional or tokens.proportional), memory

    def _forced(self, metric, s: Signals) -> merge.Matching:
        n = metric.shape[1]
        if self.matching == "kth":
            return merge.kth_bipartite(metric, self._k(n))
        noise = jax.vmap(lambda key: jax.random.uniform(key, (n,)))(s.key)
        return merge.random_bipartite(metric, noise, n - self.count(n))

    def _k(self, patches: int) -> int:
        return max(1, round(patches / max(1, patches - self.r)))


@method(
    name="tome",
    title="Token Merging: Your ViT But Faster",
    paper="arXiv:2210.09461, ICLR 2023",
    family="vit-merge",
    training="none",
    assignment="hard",
    site="every block, after attention",
    idea="merge the most similar token pairs in every block",
    uses_position=True,  # even and odd positions play different roles
    claims=(
        Claim("ViT-S/16", "r=13, off the shelf", 79.30),
        Claim("ViT-B/16", "r=13, off the shelf", 82.60),
        Claim("ViT-L/16", "r=7, off the shelf", 84.26),
        Claim("DeiT-S", "r=13, trained", 79.36),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    matching: Literal["bipartite", "kth", "random"] = "bipartite",
    proportional: bool = True,
    **asked: Unpack[Asked],
) -> Plan:
    """`keep` and `tokens` are reached by removing the same number in every block; the paper's models use r=13.

    proportional: off for MAE models that were not trained with merging. matching: `kth` always leaves floor(n / k) of n
    tokens, and so takes no `r`. Raises UserError for an r that the first merging block cannot remove (at most half of
    the patches can merge in one block; later blocks merge what they can), and for counts that a matching cannot reach.
    """
    if matching not in ("bipartite", "kth", "random"):
        raise UserError(f"tome has no matching '{matching}'; it is bipartite, kth or random.")
    if matching == "kth" and asked.get("r") is not None:
        raise UserError("tome's kth matching leaves every k-th token and takes no r: give keep, tokens or rates.")
    n, halves = target.patches, matching == "bipartite"
    steps = schedule.make(
        n, target.depth, keep, asked, range(target.depth), first=0, fall="even", whole=round, halves=halves
    )
    reducers, before = [], n
    for count, removed in zip(steps.counts, steps.removals(n), strict=True):
        reducers.append(ToMe(removed, matching, proportional))
        if (reached := reducers[-1].count(before)) != count:
            raise UserError(
                f"tome's kth matching leaves {reached} of {before} tokens where {count} are asked for: give few blocks "
                "and keep 1 / k, such as blocks=(6,) and keep 0.5."
            )
        before = count
    return Plan(at_blocks(steps.blocks, "after_attention", reducers))
