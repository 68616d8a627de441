"""Uniform grid: keep patches spread evenly over the image, blind to what it shows. A baseline for pruners to beat."""

from __future__ import annotations

from functools import cache
from typing import Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jtok.ops import schedule
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.pruner import Pruner
from jtok.reducer import Memory
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@cache
def spread_order(grid: tuple[int, int]) -> np.ndarray:
    """[rows * columns] rank of each patch in a farthest-point walk from the centre: a prefix covers the grid evenly."""
    where = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 2).astype(float)
    distance = np.full(len(where), np.inf)
    rank = np.zeros(len(where), np.int32)
    current = int(np.argmin(((where - where.mean(0)) ** 2).sum(1)))
    for step in range(len(where)):
        rank[current] = step
        distance = np.minimum(distance, ((where - where[current]) ** 2).sum(1))
        distance[current] = -1
        current = int(np.argmax(distance))
    return rank


class UniformGrid(Pruner):
    """Keeps evenly spread patches; later stages keep a subset that is still evenly spread."""

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """Higher for patches earlier in the walk over the grid."""
        rows, columns = tokens.grid
        cell = jnp.clip(jnp.round(tokens.position).astype(jnp.int32), 0, jnp.array([rows - 1, columns - 1]))
        return -jnp.asarray(spread_order(tokens.grid))[cell[..., 0] * columns + cell[..., 1]].astype(jnp.float32)


@method(
    name="uniform-grid",
    title="Uniform subsampling of the patch grid",
    paper="baseline",
    family="baseline",
    training="none",
    assignment="none",
    site="three blocks, after attention",
    idea="keep patches spread evenly over the image",
    uses_position=True,
)
def plan(target: Target, keep: float = 0.5, **asked: Unpack[Asked]) -> Plan:
    """Reduces at the blocks of the staged methods, to the same counts."""
    steps = schedule.make(target.patches, target.depth, keep, asked, first=0)
    return Plan(at_blocks(steps.blocks, "after_attention", [UniformGrid(k) for k in steps.counts]))
