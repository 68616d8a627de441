"""Token Pooling: replace the tokens by their cluster centres.

"Token Pooling in Vision Transformers", arXiv:2110.03860, WACV 2023. It is placed between blocks: here before blocks 3,
6 and 9 of 12 (no code was released, and the paper's own schedule was not available). Reads the attention that tokens
received in the previous block, which selects the initial centres and, in the weighted variants, weights the tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Unpack

from jtok.ops import cluster, schedule, select
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

Variant = Literal["weighted-kmeans", "kmeans", "weighted-kmedoids", "kmedoids"]


@dataclasses.dataclass(frozen=True)
class TokenPooling(Reducer):
    """`clusters` centres: means, or the member nearest to the rest of each cluster."""

    clusters: int
    variant: Variant = "weighted-kmeans"
    iterations: int = 5
    reads = ("attention_received",)

    def count(self, patches: int) -> int:
        return min(self.clusters, patches)

    def score(self, tokens: Tokens, s: Signals, memory: Memory):
        """[B,N], the highest are the initial centres."""
        return s.attention_received

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        if self.clusters >= patches.count:
            return tokens, memory
        received = s.attention_received[:, tokens.special :]
        start = select.top_k(received, self.clusters, valid=patches.valid, order="score")
        shared = {"weight": received if self.variant.startswith("weighted") else None, "valid": patches.valid}
        if self.variant.endswith("kmeans"):
            x, assign = cluster.k_means(patches.x, start, self.iterations, **shared)
        else:
            distance = cluster.distances(patches.x)
            medoid, assign = cluster.k_medoids(distance, start, self.iterations, **shared, update="textbook")
            x = patches.take(medoid).x
        return special.concat(patches.merge(assign, self.clusters).replace(x=x.astype(tokens.x.dtype))), memory


@method(
    name="token-pooling",
    title="Token Pooling in Vision Transformers",
    paper="arXiv:2110.03860, WACV 2023",
    family="vit-merge",
    training="optional",
    assignment="hard",
    site="three blocks, before attention",
    idea="replace tokens by weighted k-means centres",
)
def plan(
    target: Target,
    keep: float = 0.5,
    variant: Variant = "weighted-kmeans",
    iterations: int = 5,
    **asked: Unpack[Asked],
) -> Plan:
    """`variant`: whether centres are means or members, and whether tokens are weighted."""
    steps = schedule.make(target.patches, target.depth, keep, asked)
    reducers = [TokenPooling(k, variant, iterations) for k in steps.counts]
    return Plan(at_blocks(steps.blocks, "input", reducers))
