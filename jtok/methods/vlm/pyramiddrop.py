"""PyramidDrop: thrice on the way up, keep the visual tokens that the next layer's last-token query looks at.

"PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction", arXiv:2410.17247,
CVPR 2025. Needs no training, or trains with the same dropping. Stands before layers 8, 16 and 24 of 32 and computes one
row of attention there, with that layer's own norm, queries and keys: the prompt's last token, or in training the mean
over the tokens that an answer follows. Shares are of the tokens at the first site; positions are counted anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.ops import budget
from jtok.plan import Plan
from jtok.pruner import SharePruner
from jtok.reducer import Memory
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

LAYERS, PUBLISHED_DEPTH = (8, 16, 24), 32


@dataclasses.dataclass(frozen=True)
class PyramidDrop(SharePruner):
    """Keeps the share `keep` of the `patches` at the first site, by the coming layer's attention, mean over heads."""

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
    idea="drop by the next layer's last-token attention, in stages",
    claims=(Claim("LLaVA-NeXT-7B", "8/16/24, 50/25/12.5 %, same accuracy", 55.0, metric="inference FLOPs saved (%)"),),
)
def plan(
    target: Target,
    keep: float = 0.125,
    tokens: int | None = None,
    layers: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
) -> Plan:
    """The share falls geometrically to `keep` at the last stage: 0.125 is the paper's 50, 25 and 12.5 %.

    layers: the layers before which it stands (default: 8, 16 and 24 of 32, moved to the model's depth). rates: shares
    kept after each. Raises UserError for layers that the model does not have, and for rates that do not fit them.
    """
    if layers is None:
        layers = budget.blocks_at(LAYERS, PUBLISHED_DEPTH, target.layers)
    if not layers or not all(0 < a < b for a, b in zip(layers, (*layers[1:], target.layers), strict=True)):
        raise UserError(
            f"pyramiddrop cannot stand before layers {tuple(layers)}: give rising ones from 1 to {target.layers - 1}."
        )
    share = keep if tokens is None else budget.visual_tokens(target.patches, keep, tokens) / target.patches
    if rates is None:
        rates = [share ** ((s + 1) / len(layers)) for s in range(len(layers))]
    budget.stage_counts(target.patches, share, len(layers), rates)  # refuses rates that do not fit
    reducers = {f"llm.layer.{i}.input": PyramidDrop(r, target.patches) for i, r in zip(layers, rates, strict=True)}
    return Plan(reducers, positions="renumber")
