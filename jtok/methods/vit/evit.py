"""EViT: keep what the class token attends to, fuse the rest into one token.

"Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", arXiv:2202.07800, ICLR
2022. Stands after the attention of blocks 3, 6 and 9 of 12. The fused token is the attention-weighted sum of what was
dropped, its weights not renormalised (so its norm is small, as in the released code, though the paper speaks of an
average); it comes last and competes with the others at later stages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxtyping import Array, Float

from jtok.ops import budget, select
from jtok.plan import Plan, at_blocks
from jtok.pruner import Pruner
from jtok.reducer import Memory
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class EViT(Pruner):
    """Keeps the most attended patches (best first) and, with `fuse`, appends one token made of the others."""

    fuse: bool = True
    order = "score"
    reads = ("class_attention",)

    def count(self, patches: int) -> int:
        return patches if self.keep >= patches else self.keep + int(self.fuse)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return s.class_attention.mean(1)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        kept, memory = super().__call__(tokens, s, memory)
        special, patches = tokens.split()
        if not self.fuse or self.keep >= patches.count:
            return kept, memory
        score = self.score(tokens, s, memory)[:, tokens.special :]
        others = select.rest(self.best(patches, score), patches.count)
        weights = select.gather_scores(score, others)
        return kept.concat(patches.take(others).mix(weights[:, None])), memory


@method(
    name="evit",
    title="Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    paper="arXiv:2202.07800, ICLR 2022",
    family="vit-prune",
    training="optional",
    assignment="hard",
    site="three blocks, after attention",
    idea="keep the attended patches, fuse the rest into one",
    claims=(
        Claim("DeiT-S", "keep 0.7 a stage, fused", 79.5, gmacs=3.0),
        Claim("DeiT-S", "keep 0.5 a stage, fused", 78.5, gmacs=2.3),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    fuse: bool = True,
    stages: int = 3,
    rates: Sequence[float] | None = None,
    count_rule: Literal["initial", "current"] = "initial",
) -> Plan:
    """count_rule: `initial` keeps int(rate_i * initial patches) as the TokenReduction port does.

    `current` keeps ceil(rate * current tokens) at every stage, the fused one counted, as the official code does, with
    the rate keep ** (1 / stages).
    """
    blocks = budget.stage_blocks(target.depth, stages)
    if count_rule == "current":
        counts = budget.ceil_counts(target.patches, keep ** (1 / len(blocks)), len(blocks), int(fuse))
    else:
        counts = budget.stage_counts(target.patches, keep, len(blocks), rates)
    return Plan(at_blocks(blocks, "after_attention", [EViT(k, fuse) for k in counts]))
