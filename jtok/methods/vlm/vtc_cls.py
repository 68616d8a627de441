"""VTC-CLS: keep the patches that the class token attends to, over the last third of the tower's layers.

"[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", arXiv:2412.05819. Needs no training. Observers
behind the layers from `start` on add up the class token's attention, averaged over heads; the last of them, at the
tower's output, keeps the patches with the highest sum, in their order. With one layer it is FasterVLM.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.ops import budget
from jtok.plan import Plan, at_blocks
from jtok.pruner import Pruner
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

NAME = "vtc-cls"  # of the sum in the plan's memory, [B,N] float32


@dataclasses.dataclass(frozen=True)
class Observer(Reducer):
    """Adds a layer's class attention to the sum and leaves the tokens as they are."""

    observes = True
    reads = ("class_attention",)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        return tokens, {**memory, NAME: memory.get(NAME, 0.0) + s.class_attention.mean(1)}


class VTCCLS(Pruner):
    """Keeps the patches of the highest sum, the last layer's own attention included."""

    reads = ("class_attention",)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return memory.get(NAME, 0.0) + s.class_attention.mean(1)


@method(
    name="vtc-cls",
    title="[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs",
    paper="arXiv:2412.05819",
    family="vlm-encoder",
    training="none",
    assignment="none",
    site="tower output, scores from its last third",
    idea="add up the class token's attention over late layers",
)
def plan(target: Target, keep: float = 0.5, tokens: int | None = None, start: int | None = None) -> Plan:
    """`tokens` of every crop are kept, else `keep` of them; those that are left are numbered anew.

    start: first layer whose attention counts (default: 16 of the 23 that LLaVA runs of CLIP-L, in proportion). Raises
    UserError for a layer that the tower does not have.
    """
    start = target.depth * 16 // 23 if start is None else start
    if not 0 <= start < target.depth:
        raise UserError(f"vtc-cls starts at layer {start}, the tower has {target.depth}: give 0 to {target.depth - 1}.")
    earlier = range(start, target.depth - 1)
    sites = at_blocks(earlier, "output", [Observer()] * len(earlier))
    kept = budget.visual_tokens(target.patches, keep, tokens)
    return Plan({**sites, "tower.output": VTCCLS(kept)}, positions="renumber")
