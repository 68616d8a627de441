"""DivPrune: keep the visual tokens that differ most from each other.

"DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", arXiv:2503.02175, CVPR 2025. Needs no
training and no attention. It is placed before the language model, on the projected tokens of all crops together. The
first pick is the token whose nearest neighbour is farthest in cosine distance; each further pick is the token farthest
from all picked so far (greedy max-min diversity). Survivors keep their order.
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
    """Keeps a `share` of the real patches; an image with padding is padded at the end."""

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
        within = jnp.arange(picks.shape[1]) < quota[:, None]
        kept = select.members(jnp.where(within & (picks >= 0), picks, n), n)
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
    idea="keep tokens that are farthest from each other",
)
def plan(target: Target, keep: float = 0.5, tokens: int | None = None) -> Plan:
    """Keeps `tokens` per crop, or else the share `keep`; crops compete with each other. The paper keeps 0.098.

    Survivors are renumbered. Without a language model it is placed after the tower.
    """
    share = keep if tokens is None else budget.visual_tokens(target.patches, keep, tokens) / target.patches
    return Plan({"llm.input" if target.layers else "tower.output": DivPrune(share)}, positions="renumber")
