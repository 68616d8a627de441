"""VTC-CLS: keep the patches that the class token attends to over the last third of the tower's layers.

"[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", arXiv:2412.05819. Needs no training. Observers
after each layer from `start` on add up the class token's attention, averaged over heads; at the tower's output the
patches with the highest sum are kept, in their order. With a single layer this is FasterVLM.
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

NAME = "vtc-cls"  # key of the sum in the plan's memory, [B,N] float32


@dataclasses.dataclass(frozen=True)
class Observer(Reducer):
    """Adds a layer's class attention to the sum and leaves the tokens unchanged."""

    observes = True
    reads = ("class_attention",)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        return tokens, {**memory, NAME: memory.get(NAME, 0.0) + s.class_attention.mean(1)}


class VTCCLS(Pruner):
    """Keeps the patches with the highest sum, including the last layer's own attention."""

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
    site="tower output, scores from the last third of its layers",
    idea="sum class-token attention over the late layers",
)
def plan(target: Target, keep: float = 0.5, tokens: int | None = None, start: int | None = None) -> Plan:
    """Keeps `tokens` of every crop, or else the share `keep`; survivors are renumbered.

    start: first layer whose attention counts (default: 16 of the 23 CLIP-L layers that LLaVA runs, scaled). Raises
    UserError for a layer that the tower does not have.
    """
    start = target.depth * 16 // 23 if start is None else start
    if not 0 <= start < target.depth:
        raise UserError(f"vtc-cls starts at layer {start}, the tower has {target.depth}: give 0 to {target.depth - 1}.")
    earlier = range(start, target.depth - 1)
    sites = at_blocks(earlier, "output", [Observer()] * len(earlier))
    kept = budget.visual_tokens(target.patches, keep, tokens)
    return Plan({**sites, "tower.output": VTCCLS(kept)}, positions="renumber")
