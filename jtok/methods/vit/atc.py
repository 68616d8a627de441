"""ATC: agglomerative clustering of tokens by their keys.

"Agglomerative Token Clustering", arXiv:2409.11923, ECCV 2024. Needs no training. Stands where ToMe does, between the
attention and the MLP, of blocks 3, 6 and 9 of 12 or of every block; merges the two nearest groups, by the cosine
distance of head-averaged keys, until the wanted number is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from jtok.ops import budget, cluster
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ATC(Reducer):
    """`clusters` means, weighted by size, in the order of the groups' first members.

    proportional: later attention is biased by log(size). Without it tokens count once each in a mean, whatever they
    already stand for, as in the released code.
    """

    clusters: int
    linkage: cluster.Linkage = "average"
    proportional: bool = True
    reads = ("keys",)

    def count(self, patches: int) -> int:
        return min(self.clusters, patches)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        if self.clusters >= patches.count:
            return tokens, memory
        metric = s.keys.astype(jnp.float32).mean(2)[:, tokens.special :]
        assign = cluster.agglomerate(cluster.cosine_distances(metric), self.clusters, self.linkage, patches.valid)
        weight = None if self.proportional else jnp.ones_like(patches.size)
        merged = special.concat(patches.merge(assign, self.clusters, weight))
        return merged.replace(proportional=self.proportional or tokens.proportional), memory


@method(
    name="atc",
    title="Agglomerative Token Clustering",
    paper="arXiv:2409.11923, ECCV 2024",
    family="vit-merge",
    training="none",
    assignment="hard",
    site="three blocks or every block, after attention",
    idea="merge the nearest groups, one pair at a time",
)
def plan(
    target: Target,
    keep: float = 0.5,
    linkage: cluster.Linkage = "average",
    proportional: bool = True,
    where: Literal["stages", "every-block"] = "stages",
    stages: int = 3,
    rates: Sequence[float] | None = None,
) -> Plan:
    """where: the paper's fine-tuned models reduce in stages, those off the shelf a little in every block.

    `rates`: share of the initial patches kept after each stage.
    """
    if where == "every-block":
        removals = budget.constant_removal(target.patches, keep, target.depth)
        blocks = [i for i, removed in enumerate(removals) if removed]
        counts = [target.patches - sum(removals[: i + 1]) for i in blocks]
    else:
        blocks = budget.stage_blocks(target.depth, stages)
        counts = budget.stage_counts(target.patches, keep, len(blocks), rates)
    return Plan(at_blocks(blocks, "after_attention", [ATC(k, linkage, proportional) for k in counts]))
