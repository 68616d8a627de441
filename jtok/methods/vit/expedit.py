"""Expedit: the middle of the tower runs on superpixels, and the full grid is reconstructed at the end.

"Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning", arXiv:2210.01035, NeurIPS 2022.
Needs no training and reads no attention. After one block the grid of patches is clustered into a coarser one by
local soft k-means; at the tower's output every patch is reconstructed from the refined versions of the clusters that
were nearest to it when they were formed.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jtok.errors import UserError
from jtok.ops import budget, cluster
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

Normalize = Literal["l2", "l1"]


@dataclasses.dataclass(frozen=True)
class Cluster(Reducer):
    """Turns the full grid of patches into `cells` = (rows, columns) centroids and remembers the grid."""

    cells: tuple[int, int]
    iterations: int = 5
    temperature: float = 0.02
    neighbourhood: int = 5  # odd: side, in cells, of the window over which a patch may spread

    def count(self, patches: int) -> int:
        return self.cells[0] * self.cells[1]

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        grid = tokens.grid
        if len(grid) != 2 or patches.count != grid[0] * grid[1]:
            raise UserError(
                "expedit clusters a full two-dimensional grid of patches: place it before any other reducer."
            )
        centroids, share, real = cluster.local_soft_k_means(
            patches.x, grid, self.cells, self.iterations, self.temperature, self.neighbourhood, patches.valid
        )
        mixed = patches.mix(share, centroids)
        mixed = mixed if patches.valid is None else mixed.replace(valid=real)
        return special.concat(mixed), memory | {"expedit": {"patches": patches, "clusters": mixed}}


@dataclasses.dataclass(frozen=True)
class Reconstruct(Reducer):
    """Reconstructs the `patches` of the grid from the clusters, see `reconstruct`."""

    patches: int
    nearest: int = 20
    temperature: float = 0.02
    normalize: Normalize = "l2"
    clamp: bool = False

    def count(self, patches: int) -> int:
        return self.patches

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        if "expedit" not in memory:
            raise UserError(
                "expedit can reconstruct only what it has clustered: its first reducer must be placed before."
            )
        special, refined = tokens.split()
        before, clusters = memory["expedit"]["patches"], memory["expedit"]["clusters"]
        if refined.count != clusters.count:
            raise UserError(f"expedit made {clusters.count} clusters, but {refined.count} are left: keep them all.")
        options = self.nearest, self.temperature, self.normalize, self.clamp
        x = reconstruct(before.x, clusters.x, refined.x, *options, valid=clusters.valid)
        rest = {name: value for name, value in memory.items() if name != "expedit"}
        return special.concat(before.replace(x=x.astype(tokens.x.dtype))), rest


def reconstruct(
    features: Float[Array, "B N D"],
    clusters: Float[Array, "B M D"],
    refined: Float[Array, "B M E"],
    nearest: int = 20,
    temperature: float = 0.02,
    normalize: Normalize = "l2",
    clamp: bool = False,
    valid: Bool[Array, "B M"] | None = None,
) -> Float[Array, "B N E"]:
    """Every patch as a mixture of `refined` clusters, by exp(-temperature * squared distance) to the original ones.

    Only the `nearest` clusters (ties included) are used, all if it is negative. normalize: the released models divide
    the weights by their Euclidean norm; `l1` divides by their sum, the average given in the paper. clamp: negative
    distances, from rounding, become zero (as in the code for Segment Anything, unlike that for Segmenter).
    """
    d = cluster.squared_distances(features, clusters)
    d = jnp.maximum(d, 0) if clamp else d
    d = d if valid is None else jnp.where(valid[:, None], d, jnp.inf)
    w = jnp.exp(-temperature * d)
    if 0 <= nearest < w.shape[-1]:
        w = jnp.where(w >= lax.top_k(w, max(nearest, 1))[0][..., -1:], w, 0)
    norm = w.sum(-1) if normalize == "l1" else jnp.sqrt((w * w).sum(-1))
    w = w / jnp.maximum(norm, 1e-12)[..., None]
    return jnp.einsum("bnm,bme->bne", w, refined.astype(jnp.float32), precision=lax.Precision.HIGHEST)


@method(
    name="expedit",
    title="Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning",
    paper="arXiv:2210.01035, NeurIPS 2022",
    family="vit-merge",
    training="none",
    assignment="soft",
    site="after one block, and at the tower's output",
    idea="cluster the grid, reconstruct it at the end",
    uses_position=True,
    claims=(
        Claim("Segmenter ViT-L/16", "unreduced", 51.82, "ADE20K mIoU (%)", 658.98),
        Claim("Segmenter ViT-L/16", "after block 16, 28x28 of 40x40", 51.93, "ADE20K mIoU (%)", 529.81),
        Claim("Segmenter ViT-L/16", "after block 10, 28x28 of 40x40", 51.56, "ADE20K mIoU (%)", 443.84),
        Claim("Segmenter ViT-L/16", "after block 8, 20x20 of 40x40", 47.96, "ADE20K mIoU (%)", 309.4),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    block: int | None = None,
    cells: tuple[int, int] | None = None,
    iterations: int = 5,
    temperature: float = 0.02,
    neighbourhood: int = 5,
    nearest: int = 20,
    normalize: Normalize = "l2",
    clamp: bool = False,
) -> Plan:
    """`keep` is the share of tokens in the middle of the tower; all patches are restored at its output.

    block: cluster after this block (default: 9 of 24, as in the paper's ADE20K model). cells: (rows, columns) of
    clusters, instead of the grid nearest to `keep`. Segment Anything's settings are temperature 0.01 and clamp.
    """
    block = target.depth * 9 // 24 if block is None else block
    cells = budget.coarse_grid(target.grid, keep) if cells is None else tuple(cells)
    return Plan(
        {
            f"tower.block.{block}.output": Cluster(cells, iterations, temperature, neighbourhood),
            "tower.output": Reconstruct(target.patches, nearest, temperature, normalize, clamp),
        }
    )
