"""PyramidDrop: at three depths, keep the visual tokens that the last token attends to in the next layer.

"PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction", arXiv:2410.17247,
CVPR 2025. Needs no training, but can be trained with the same dropping. Placed before layers 8, 16 and 24 of 32, it
computes a single row of attention there, with that layer's own norm, queries and keys: that of the prompt's last token,
or in training the mean over the tokens that precede an answer. Shares refer to the tokens at the first site; positions
are renumbered.
"""

from __future__ import annotations

import dataclasses
from typing import Unpack

from jaxtyping import Array, Float

from jtok.ops import budget, schedule
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.pruner import SharePruner
from jtok.reducer import Memory
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

LAYERS, PUBLISHED_DEPTH = (8, 16, 24), 32


@dataclasses.dataclass(frozen=True)
class PyramidDrop(SharePruner):
    """Keeps the share `keep` of the `patches` at the first site, by the next layer's attention, mean over heads."""

    patches: int
    reads = ("next_last_token_attention",)

    def count(self, patches: int) -> int:
        return min(patches, budget.share_of(self.patches, self.keep))

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return s.next_last_token_attention.mean(1)


@method(
    name="pyramiddrop",
    title="PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
    paper="arXiv:2410.17247, CVPR 2025",
    family="vlm-decoder",
    training="optional",
    assignment="none",
    site="before three layers of the language model",
    idea="prune in stages by the next layer's last-token attention",
    claims=(Claim("LLaVA-NeXT-7B", "8/16/24, 50/25/12.5 %, same accuracy", 55.0, metric="inference FLOPs saved (%)"),),
)
def plan(target: Target, keep: float = 0.125, **asked: Unpack[Asked]) -> Plan:
    """The share falls geometrically to `keep` at the last stage: 0.125 is the paper's 50, 25 and 12.5 %.

    `blocks` are the layers of the language model before which it is placed (default: 8, 16 and 24 of 32, scaled to
    the model's depth).
    """
    blocks = schedule.blocks_at(LAYERS, PUBLISHED_DEPTH, target.layers)
    steps = schedule.make(target.patches, target.layers, keep, asked, blocks)
    reducers = [PyramidDrop(share, target.patches) for share in steps.shares]
    return Plan(at_blocks(steps.blocks, "input", reducers, "llm"), positions="renumber")
