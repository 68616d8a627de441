"""ToMe: merge the most similar tokens a little in every block.

"Token Merging: Your ViT But Faster", arXiv:2210.09461, ICLR 2023. Needs no training. Stands between the attention and
the MLP of every block; compares the block's keys, averaged over heads, and merges r pairs into size-weighted
means. Afterwards attention is proportional: log(size) biases the keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jtok.errors import UserError
from jtok.ops import budget, merge
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ToMe(Reducer):
    """Merges `r` tokens: by bipartite matching, into every k-th token, or r random ones into the rest.

    The last two are the paper's ablations; here they leave special tokens alone, which the reference code does not.
    """

    r: int
    matching: Literal["bipartite", "kth", "random"] = "bipartite"
    proportional: bool = True
    reads = ("keys",)

    def count(self, patches: int) -> int:
        """The k-th matching leaves floor(patches / k), with k chosen so that about r go."""
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
    idea="merge the most similar pairs, bipartite, in every block",
    uses_position=True,  # even and odd places play different parts
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
    r: int | tuple[int, float] | Sequence[int] | None = None,
    matching: Literal["bipartite", "kth", "random"] = "bipartite",
    proportional: bool = True,
) -> Plan:
    """`r` in the paper's schedule language (`jtok.ops.budget.linear_schedule`) overrides `keep`.

    Without it the removals are spread evenly over the blocks so that `keep` of the patches are left at the end.
    proportional: off for MAE models that were not trained with merging. Raises UserError for an r that the first
    merging block cannot remove (at most half of the patches merge in one block; later ones what they can).
    """
    if r is None:
        removals = budget.constant_removal(target.patches, keep, target.depth)
    else:
        removals = budget.linear_schedule(target.depth, r)[: target.depth]
    blocks = [i for i, removed in enumerate(removals) if removed > 0]
    if blocks and matching == "bipartite" and removals[blocks[0]] > target.patches // 2:
        most = target.patches // 2
        raise UserError(
            f"r = {removals[blocks[0]]} is more than can merge at once: at most {most} of {target.patches} patches."
        )
    reducers = [ToMe(removals[i], matching, proportional) for i in blocks]
    return Plan(at_blocks(blocks, "after_attention", reducers))
