"""Random: the baseline that every pruner must beat. Keeps patches drawn uniformly, a fresh draw for every image."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jtok import budget, select
from jtok.plan import Memory, Plan, Reducer, Target, at_blocks
from jtok.registry import method
from jtok.signals import Signals
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Random(Reducer):
    """Keeps `keep` patches drawn without replacement from the image's own key, in spatial order."""

    keep: int

    def count(self, patches: int) -> int:
        return min(self.keep, patches)

    def score(self, tokens: Tokens, s: Signals, memory: Memory):
        """[B,N] uniform draws."""
        salt = tokens.count  # stages differ in length, so each draws anew
        return jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, salt), (tokens.count,), jnp.float32))(s.key)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        score = self.score(tokens, s, memory)[:, tokens.special :]
        index = select.top_k(score, self.count(patches.count), valid=patches.valid)
        return special.concat(patches.take(index)), memory


@method(
    name="random",
    title="Random pruning",
    paper="baseline",
    family="baseline",
    training="none",
    assignment="none",
    reads=(),
    site="three blocks, after attention",
    idea="keep patches drawn at random",
    uses_position=True,  # the draw goes by slot, not by content
)
def plan(target: Target, keep: float = 0.5, stages: int = 3) -> Plan:
    """Reduces where the staged methods do, to the same counts."""
    blocks = budget.stage_blocks(target.depth, stages)
    counts = budget.stage_counts(target.patches, keep, len(blocks))
    return Plan(at_blocks(blocks, "after_attention", [Random(k) for k in counts]))
