"""EViT: keep what the class token attends to, fuse the rest into one token.

"Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", arXiv:2202.07800, ICLR
2022. It is placed after the attention of blocks 3, 6 and 9 of 12. The fused token is the attention-weighted sum of the
dropped patches, with weights not renormalised (so its norm is small, as in the released code, though the paper speaks
of an average); it comes last and competes with the others at later stages.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Unpack

from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.ops import schedule, select
from jtok.ops.schedule import Asked
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
    idea="keep the attended patches, fuse the rest into one token",
    claims=(
        Claim("DeiT-S", "keep 0.7 a stage, fused", 79.5, gmacs=3.0),
        Claim("DeiT-S", "keep 0.5 a stage, fused", 78.5, gmacs=2.3),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    fuse: bool = True,
    count_rule: Literal["initial", "current"] = "initial",
    **asked: Unpack[Asked],
) -> Plan:
    """The paper's keep rate 0.7 is rates=(0.7, 0.49, 0.343); the fused token is left in addition.

    For `tokens` and `r` it counts among those left. count_rule: `initial` keeps int(rate_i * initial patches) as the
    TokenReduction port does; `current` keeps ceil(rate * current tokens) at every stage, the fused one counted, as the
    official code does, with the rate keep ** (1 / stages). Raises UserError for other amounts under `current`.
    """
    if count_rule not in ("initial", "current"):
        raise UserError(f"evit has no count_rule '{count_rule}'; it is initial or current.")
    steps = schedule.make(target.patches, target.depth, keep, asked, first=0)
    exact = [name for name in ("tokens", "rates", "r") if asked.get(name) is not None]
    counts = steps.counts
    if count_rule == "current":
        if exact:
            raise UserError(f"evit's count_rule=current would ignore {exact[0]}={asked[exact[0]]}: give keep instead.")
        counts = schedule.ceil_counts(target.patches, keep ** (1 / len(counts)), len(counts), int(fuse))
    elif fuse and exact and exact != ["rates"]:
        counts = tuple(k - int(removed > 0) for k, removed in zip(counts, steps.removals(target.patches), strict=True))
        if counts and min(counts) < 1:
            raise UserError("evit leaves at least two tokens, a patch and the fused one: ask for more, or fuse=False.")
    return Plan(at_blocks(steps.blocks, "after_attention", [EViT(k, fuse) for k in counts]))
