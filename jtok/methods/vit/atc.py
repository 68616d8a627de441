"""ATC: agglomerative clustering of tokens by their keys.

"Agglomerative Token Clustering", arXiv:2409.11923, ECCV 2024. Needs no training. It is placed like ToMe, between the
attention and the MLP, in blocks 3, 6 and 9 of 12 or in every block; repeatedly merges the two nearest groups, by the
cosine distance of head-averaged keys, until the requested number is left.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Unpack

import jax.numpy as jnp

from jtok.errors import UserError
from jtok.ops import cluster, schedule
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ATC(Reducer):
    """`clusters` means, weighted by size, in the order of the groups' first members.

    proportional: later attention is biased by log(size). Without it every token counts once in a mean, regardless
    of its size, as in the released code.
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
    idea="agglomeratively merge the nearest groups of tokens",
)
def plan(
    target: Target,
    keep: float = 0.5,
    linkage: cluster.Linkage = "average",
    proportional: bool = True,
    where: Literal["stages", "every-block"] = "stages",
    **asked: Unpack[Asked],
) -> Plan:
    """where: the paper's fine-tuned models reduce in stages, its off-the-shelf models a little in every block.

    Raises UserError for another `where`, and for `blocks` or `stages` together with every-block.
    """
    size = target.patches, target.depth
    if where == "every-block":
        named = next((name for name in ("blocks", "stages") if asked.get(name) is not None), None)
        if named is not None:
            raise UserError(f"atc's where=every-block would ignore {named}={asked[named]}: give one of them.")
        steps = schedule.make(*size, keep, asked, range(target.depth), first=0, fall="even", whole=round)
    elif where == "stages":
        steps = schedule.make(*size, keep, asked, first=0)
    else:
        raise UserError(f"atc cannot be placed at where={where}: choose stages or every-block.")
    reducers = [ATC(k, linkage, proportional) for k in steps.counts]
    return Plan(at_blocks(steps.blocks, "after_attention", reducers))
