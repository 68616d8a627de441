"""DPC-KNN: cluster around dense tokens that are far from denser ones, and average with learned weights.

"Not All Tokens Are Equal: Human-centric Visual Analysis via Token Clustering Transformer" (TCFormer), arXiv:2204.08680,
CVPR 2022; as evaluated in arXiv:2308.04657. It is placed before blocks 3, 6 and 9 of 12 and reads the tokens
themselves. A linear score per stage weights each token by exp(score) in its group's mean; it is initialised to zero,
that is, to equal weights.
"""

from __future__ import annotations

import dataclasses
from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok import kernels
from jtok.ops import cluster, schedule
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


def weighted_mean(
    x: Float[Array, "B N D"], assign: Int[Array, "B N"], num: int, weight: Float[Array, "B N"]
) -> tuple[Float[Array, "B K D"], Float[Array, "B N"]]:
    """(mean of every group, share of every token in its group's mean).

    As in the released code, 1e-6 is added to the mass of a group.
    """
    total, mass = kernels.merge(x.astype(jnp.float32), assign, num, weight=weight)
    mass = mass + 1e-6
    return total / mass[..., None], weight / jnp.take_along_axis(mass, assign, 1)


def group(tokens: Tokens, num: int, neighbours: int, weight: Float[Array, "B N"] | None) -> Tokens:
    """Special tokens, then `num` means of the patches by `weight` [B,N] (None for equal weights)."""
    special, patches = tokens.split()
    if num >= patches.count:
        return tokens
    _, assign = cluster.density_peaks(patches.x, num, neighbours, valid=patches.valid)
    weight = patches.mask().astype(jnp.float32) if weight is None else weight[:, tokens.special :] * patches.mask()
    x, _ = weighted_mean(patches.x, assign, num, weight)
    return special.concat(patches.merge(assign, num).replace(x=x.astype(tokens.x.dtype)))


@dataclasses.dataclass(frozen=True)
class EqualDPCKNN(Reducer):
    """`clusters` plain means; densities from the `neighbours` nearest tokens."""

    clusters: int
    neighbours: int = 5

    def count(self, patches: int) -> int:
        return min(self.clusters, patches)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        return group(tokens, self.clusters, self.neighbours, None), memory


class DPCKNN(nnx.Module, Reducer):
    """`clusters` means weighted by the exponential of a learned linear score of the tokens."""

    def __init__(self, clusters: int, width: int, neighbours: int = 5, *, rngs: nnx.Rngs):
        self.clusters, self.neighbours = clusters, neighbours
        zeros = nnx.initializers.zeros_init()
        self.significance = nnx.Linear(width, 1, kernel_init=zeros, dtype=jnp.float32, rngs=rngs)

    def count(self, patches: int) -> int:
        return min(self.clusters, patches)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        weight = jnp.exp(self.significance(tokens.x.astype(jnp.float32))[..., 0])
        return group(tokens, self.clusters, self.neighbours, weight), memory


@method(
    name="dpc-knn",
    title="Not All Tokens Are Equal: Human-centric Visual Analysis via Token Clustering Transformer",
    paper="arXiv:2204.08680, CVPR 2022",
    family="vit-merge",
    training="optional",
    assignment="hard",
    site="three blocks, before attention",
    idea="cluster tokens around dense, mutually distant ones",
    claims=(
        Claim("TCFormer-Light", "trained, 14.2M parameters", 79.4),
        Claim("TCFormer", "trained, 25.6M parameters", 82.3),
        Claim("TCFormer-Large", "trained, 62.8M parameters", 83.6),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    neighbours: int = 5,
    equal_weight: bool = False,
    rngs: nnx.Rngs | None = None,
    **asked: Unpack[Asked],
) -> Plan:
    """With `equal_weight` no score is learned."""
    steps = schedule.make(target.patches, target.depth, keep, asked)
    if equal_weight:
        return Plan(at_blocks(steps.blocks, "input", [EqualDPCKNN(k, neighbours) for k in steps.counts]))
    rngs = rngs or nnx.Rngs(0)
    reducers = [DPCKNN(k, target.width, neighbours, rngs=rngs) for k in steps.counts]
    return Plan(at_blocks(steps.blocks, "input", reducers))
