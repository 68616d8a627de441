"""FasterVLM: keep the patches that the class token attends to, before the projector.

"[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster", arXiv:2412.01818.
Needs no training. Stands behind the tower and reads the class token's attention in its last layer (the one whose
features the language model takes), averaged over heads; survivors stay in their order. Of an image cut into crops,
every crop keeps the same number.
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
    idea="keep what the class token attends to last",
    claims=(Claim("LLaVA-1.5-7B", "5 % of the visual tokens", 90.0, metric="share of the full model's score (%)"),),
)
def plan(target: Target, keep: float = 0.5, tokens: int | None = None) -> Plan:
    """`tokens` of every crop are kept, else `keep` of them; those that are left are numbered anew, as in the code."""
    kept = budget.visual_tokens(target.patches, keep, tokens)
    return Plan({"tower.output": FasterVLM(kept)}, positions="renumber")
