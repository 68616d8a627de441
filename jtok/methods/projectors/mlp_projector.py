"""MLP projector: an MLP applied to each patch, with average pooling where fewer tokens are wanted.

"Improved Baselines with Visual Instruction Tuning" (LLaVA-1.5), arXiv:2310.03744, CVPR 2024. The projector keeps all
patches: the reference point of every table. Adaptive average pooling before or after it is the simplest way to reduce
tokens; after a model's own projector it needs no training. Where the grid does not divide evenly the cells overlap, as
in torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.layers.projector import mlp_projector
from jtok.ops import budget
from jtok.ops.cluster import adaptive_average_pool
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class AdaptivePool(Reducer):
    """Averages the patches of each cell of a `cells` = (rows, columns) grid, crop by crop.

    Where cells overlap, a patch is owned by the first one that contains it.
    """

    cells: tuple[int, int]

    def count(self, patches: int) -> int:
        """Tokens per crop."""
        return self.cells[0] * self.cells[1]

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        rows, columns = (np.arange(g) * c // g for g, c in zip(tokens.grid, self.cells, strict=True))
        merged = patches.pool(rows[:, None] * self.cells[1] + columns, self.count(0))
        valid = patches.mask()[..., None]
        x, share = (self._pool(a, tokens.grid) for a in (jnp.where(valid, patches.x, 0), valid))
        x = (x / jnp.maximum(share, 1e-6)).reshape(merged.x.shape)
        return special.concat(merged.replace(x=x.astype(tokens.x.dtype))), memory

    def _pool(self, a: Float[Array, "B N D"], grid: tuple[int, int]) -> Float[Array, "C K D"]:
        """Averages over the cells of each of the C crops."""
        crops = a.reshape(-1, grid[0] * grid[1], a.shape[-1])
        return adaptive_average_pool(crops.astype(jnp.float32), grid, self.cells)


@method(
    name="mlp-projector",
    title="Improved Baselines with Visual Instruction Tuning",
    paper="arXiv:2310.03744, CVPR 2024",
    family="vlm-projector",
    training="optional",
    assignment="hard",
    site="the projector, with pooling before or after it",
    idea="an MLP per patch, pooled to a coarser grid",
    uses_position=True,
)
def plan(
    target: Target,
    keep: float = 0.5,
    tokens: int | None = None,
    projector: str = "own",
    pool: Literal["after", "before", "none"] = "after",
    cells: Sequence[int] | None = None,
    rngs: nnx.Rngs | None = None,
) -> Plan:
    """Pools to `tokens` per crop, or else to the grid of the patches' shape nearest to `keep` of them.

    projector: `own`, the model's, or a fresh `linear`, `mlp2x_gelu`, `identity` to be trained. pool: where averages
    are taken; `none` leaves all patches. cells: rows and columns to pool to. Tokens are renumbered.
    """
    if pool not in ("after", "before", "none"):
        raise UserError(f"mlp-projector cannot pool '{pool}': ask for after, before or none.")
    fresh = None if projector == "own" else mlp_projector(projector, target, rngs or nnx.Rngs(0))
    cells = _cells(target, keep, tokens) if cells is None else tuple(cells)
    if len(cells) != 2 or not all(1 <= c <= g for c, g in zip(cells, target.grid, strict=True)):
        raise UserError(f"mlp-projector cannot pool {target.grid[0]}x{target.grid[1]} patches to {cells}.")
    site = {"after": "projector", "before": "tower.output"}.get(pool)
    sites = {} if site is None or cells == target.grid else {site: AdaptivePool(cells)}
    return Plan(sites, projector=fresh, positions="renumber")


def _cells(target: Target, keep: float, tokens: int | None) -> tuple[int, int]:
    cells = budget.coarse_grid(target.grid, keep if tokens is None else tokens / target.patches)
    if tokens is not None and cells[0] * cells[1] != tokens:
        raise UserError(
            f"no grid of about the patches' shape has {tokens} cells: ask for {cells[0] * cells[1]}, or give cells=."
        )
    return cells
