"""FasterVLM: keep the patches that the class token attends to, before the projector.

"[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster", arXiv:2412.01818.
Needs no training. It is placed after the tower and reads the class token's attention in the last layer (the one whose
features the language model receives), averaged over heads; survivors keep their order. Every crop of an image keeps
the same number.
"""

from __future__ import annotations

from jaxtyping import Array, Float

from jtok.ops import budget
from jtok.plan import Plan
from jtok.pruner import Pruner
from jtok.reducer import Memory
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


class FasterVLM(Pruner):
    """Keeps the patches of highest class attention, averaged over heads, in spatial order."""

    reads = ("class_attention",)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return s.class_attention.mean(1)


@method(
    name="fastervlm",
    title="[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
    paper="arXiv:2412.01818",
    family="vlm-encoder",
    training="none",
    assignment="none",
    site="tower output",
    idea="keep patches by the last layer's class attention",
    claims=(Claim("LLaVA-1.5-7B", "5 % of the visual tokens", 90.0, metric="share of the full model's score (%)"),),
)
def plan(target: Target, keep: float = 0.5, tokens: int | None = None) -> Plan:
    """Keeps `tokens` of every crop, or else the share `keep`; survivors are renumbered, as in the released code."""
    kept = budget.visual_tokens(target.patches, keep, tokens)
    return Plan({"tower.output": FasterVLM(kept)}, positions="renumber")
