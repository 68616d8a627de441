"""Random: the baseline that every pruner must beat. Keeps patches drawn uniformly, a fresh draw for every image."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
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


class Random(Pruner):
    """Keeps patches drawn without replacement from the image's own key."""

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        salt = tokens.count  # stages differ in length, so each makes its own draw
        return jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, salt), (tokens.count,), jnp.float32))(s.key)


@method(
    name="random",
    title="Random pruning",
    paper="baseline",
    family="baseline",
    training="none",
    assignment="none",
    site="three blocks, after attention",
    idea="keep patches drawn uniformly at random",
    uses_position=True,  # the draw depends on the slot, not on the content
)
def plan(target: Target, keep: float = 0.5, **asked: Unpack[Asked]) -> Plan:
    """Reduces at the blocks of the staged methods, to the same counts."""
    steps = schedule.make(target.patches, target.depth, keep, asked, first=0)
    return Plan(at_blocks(steps.blocks, "after_attention", [Random(k) for k in steps.counts]))
