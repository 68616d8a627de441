"""K-Medoids: keep the most central token of each cluster.

As evaluated in "Which Tokens to Use? Investigating Token Reduction in Vision Transformers", arXiv:2308.04657, ICCV
Workshops 2023, after the K-Medoids form of "Token Pooling in Vision Transformers", arXiv:2110.03860. It is placed
before blocks 3, 6 and 9 of 12 and reads the attention that tokens received in the previous block. The outputs are input
tokens, not averages, so it amounts to pruning for diversity.
"""

from __future__ import annotations

import dataclasses
from typing import Unpack

import jax

from jtok.ops import cluster, schedule, select
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class KMedoids(Reducer):
    """`clusters` medoids of the patches, in the order of the initial medoids, after `iterations` rounds.

    Starts from the tokens that receive most attention, which also weights the distances; with `equal_weight`, from a
    random token of the image and those farthest from it. `update`: see `jtok.ops.cluster.k_medoids`.
    """

    clusters: int
    iterations: int = 3
    equal_weight: bool = False
    update: cluster.MedoidUpdate = "official"

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing with equal weights."""
        return () if self.equal_weight else ("attention_received",)

    def count(self, patches: int) -> int:
        return min(self.clusters, patches)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        if self.clusters >= patches.count:
            return tokens, memory
        weight = None if self.equal_weight else s.attention_received[:, tokens.special :]
        distance = cluster.distances(patches.x)
        if weight is None:
            start = cluster.spread_by_maximum(distance, self.clusters, self._first(patches, s), patches.valid)
        else:
            start = select.top_k(weight, self.clusters, valid=patches.valid, order="score")
        medoid, assign = cluster.k_medoids(
            distance, start, self.iterations, weight=weight, valid=patches.valid, update=self.update
        )
        chosen = patches.take(medoid)
        merged = patches.merge(assign, self.clusters)
        merged = merged.replace(x=chosen.x, position=chosen.position, policy=chosen.policy, carry=chosen.carry)
        return special.concat(merged), memory

    def _first(self, patches: Tokens, s: Signals) -> jax.Array:
        """[B] a random real token of every image."""
        draw = jax.vmap(lambda key: jax.random.uniform(key, (patches.count,)))(s.key)
        return select.top_k(draw, 1, valid=patches.valid)[:, 0]


@method(
    name="kmedoids",
    title="Which Tokens to Use? Investigating Token Reduction in Vision Transformers",
    paper="arXiv:2308.04657, ICCVW 2023",
    family="vit-merge",
    training="optional",
    assignment="hard",
    site="three blocks, before attention",
    idea="cluster the tokens, keep each cluster's medoid",
)
def plan(
    target: Target,
    keep: float = 0.5,
    iterations: int = 3,
    equal_weight: bool = False,
    update: cluster.MedoidUpdate = "official",
    **asked: Unpack[Asked],
) -> Plan:
    """`iterations` rounds; with `equal_weight` attention is not used."""
    steps = schedule.make(target.patches, target.depth, keep, asked)
    reducers = [KMedoids(k, iterations, equal_weight, update) for k in steps.counts]
    return Plan(at_blocks(steps.blocks, "input", reducers))
