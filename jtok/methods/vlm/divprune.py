"""DivPrune: keep the visual tokens that differ most from each other.

"DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", arXiv:2503.02175, CVPR 2025. Needs no
training and no attention. Stands before the language model, on the projected tokens of all crops together: first the
token whose nearest neighbour is farthest by cosine, then again and again the one farthest from all picked so far
(greedy max-min diversity). Survivors stay in their order.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from jtok import kernels
from jtok.ops import budget, select
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class DivPrune(Reducer):
    """Keeps a `share` of the patches; of an image with padding that share of the real ones, padded behind."""

    share: float

    def count(self, patches: int) -> int:
        """round(share * patches), halves to even as in the released code; at least one."""
        return min(patches, max(1, round(self.share * patches)))

    def picks(self, patches: Tokens) -> Int[Array, "B K"]:
        """Indices in the order picked; -1 where an image has no token left."""
        return kernels.max_min_select(patches.x, self.count(patches.count), metric="cosine", valid=patches.valid)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        n = patches.count
        if self.count(n) >= n:
            return tokens, memory
        picks = self.picks(patches)
        if patches.valid is None:
            return special.concat(patches.take(select.ascending(picks, n))), memory
        quota = jnp.asarray([self.count(real) for real in range(n + 1)])[patches.valid.sum(1)]
        mine = jnp.arange(picks.shape[1]) < quota[:, None]
        kept = select.members(jnp.where(mine & (picks >= 0), picks, n), n)
        index = select.member_index(kept, picks.shape[1])
        return special.concat(patches.take(index, jnp.take_along_axis(kept, index, 1))), memory


@method(
    name="divprune",
    title="DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
    paper="arXiv:2503.02175, CVPR 2025",
    family="vlm-encoder",
    training="none",
    assignment="none",
    site="before the language model",
    idea="keep tokens that are far from each other",
)
def plan(target: Target, keep: float = 0.5, tokens: int | None = None) -> Plan:
    """`tokens` a crop are kept, else `keep` of all; crops compete with each other. The paper keeps 0.098.

    Those that are left are numbered anew. Without a language model it stands behind the tower.
    """
    share = keep if tokens is None else budget.visual_tokens(target.patches, keep, tokens) / target.patches
    return Plan({"llm.input" if target.layers else "tower.output": DivPrune(share)}, positions="renumber")
