"""Average pool: neighbouring patches are averaged on a coarser grid. A baseline that mergers must beat."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jtok.ops import budget
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class AveragePool(Reducer):
    """Averages the tokens that lie in the same cell of a `cells` = (rows, columns) grid, weighted by size."""

    cells: tuple[int, int]

    def count(self, patches: int) -> int:
        return self.cells[0] * self.cells[1]

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        scale = jnp.array([c / g for c, g in zip(self.cells, tokens.grid, strict=True)])
        # the epsilon keeps a patch on a cell's border from rounding down
        cell = jnp.floor(patches.position * scale + 1e-4).astype(jnp.int32)
        assign = cell[..., 0] * self.cells[1] + cell[..., 1]
        return special.concat(patches.merge(assign, self.count(patches.count))), memory


@method(
    name="average-pool",
    title="Average pooling of the patch grid",
    paper="baseline",
    family="baseline",
    training="none",
    assignment="hard",
    site="one block, before attention",
    idea="average neighbouring patches on a coarser grid",
    uses_position=True,
)
def plan(target: Target, keep: float = 0.5, block: int | None = None) -> Plan:
    """Pools once, before `block` (default: half the depth), to the grid nearest to `keep` of the patches."""
    block = target.depth // 2 if block is None else block
    return Plan(at_blocks([block], "input", [AveragePool(budget.coarse_grid(target.grid, keep))]))
