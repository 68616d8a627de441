"""Top-K: keep the patches that the class token attends to most.

Baseline of "Which Tokens to Use? Investigating Token Reduction in Vision Transformers", arXiv:2308.04657, ICCV
Workshops 2023; equivalent to EViT (arXiv:2202.07800) without its fused token. It is placed after the attention of
blocks 3, 6 and 9 of 12 and orders the survivors by score.
"""

from __future__ import annotations

from typing import Unpack

from jaxtyping import Array, Float

from jtok.ops import schedule
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.pruner import Pruner
from jtok.reducer import Memory
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


class TopK(Pruner):
    """Keeps the patches with the highest class attention, averaged over heads, best first."""

    order = "score"
    reads = ("class_attention",)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return s.class_attention.mean(1)


@method(
    name="topk",
    title="Which Tokens to Use? Investigating Token Reduction in Vision Transformers",
    paper="arXiv:2308.04657, ICCVW 2023",
    family="vit-prune",
    training="optional",
    assignment="none",
    site="three blocks, after attention",
    idea="keep the patches that the class token attends to",
    claims=(
        Claim("DeiT-S", "official EViT code without fusion, keep 0.7 a stage", 79.4, gmacs=3.0),
        Claim("DeiT-S", "official EViT code without fusion, keep 0.5 a stage", 78.4, gmacs=2.3),
    ),
)
def plan(target: Target, keep: float = 0.5, **asked: Unpack[Asked]) -> Plan:
    """The paper's keep rate 0.7 is rates=(0.7, 0.49, 0.343)."""
    steps = schedule.make(target.patches, target.depth, keep, asked, first=0)
    return Plan(at_blocks(steps.blocks, "after_attention", [TopK(k) for k in steps.counts]))
