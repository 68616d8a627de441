"""GAP: give pruned visual tokens back their order and their positions, so that a model can still point at things.

"Grounding-Aware Token Pruning: Recovering from Drastic Performance Drops in Visual Grounding Caused by Pruning",
arXiv:2506.21873. Needs no training. Goes with any method, at any site: what is left is sorted as it stood in the prompt
and keeps the position ids of the whole prompt, with gaps; text keeps its own, and an answer goes on from the length of
the whole prompt. A merged token has the id of the patch nearest to its centre. The same is `positions="restore"` of any
method; `positions="keep"` restores ids only, `positions="order"` order only.
"""

from __future__ import annotations

from jtok.errors import UserError
from jtok.methods.catalogue import find, make_plan
from jtok.plan import Plan, Target
from jtok.registry import Claim, method


@method(
    name="gap",
    title="Grounding-Aware Token Pruning: Recovering from Drastic Performance Drops in Visual Grounding Caused by "
    "Pruning",
    paper="arXiv:2506.21873",
    family="vlm-decoder",
    training="none",
    assignment="none",
    reads=("last_token_attention",),
    site="where the method `of` stands",
    idea="restore order and position ids of pruned tokens",
    claims=(
        Claim("LLaVA", "unpruned", 56.14, metric="RefCOCO val (%)"),
        Claim("LLaVA", "pruned, positions counted anew", 15.34, metric="RefCOCO val (%)"),
        Claim("LLaVA", "pruned, with GAP", 51.42, metric="RefCOCO val (%)"),
    ),
)
def plan(target: Target, keep: float = 0.5, tokens: int | None = None, of: str = "fastv") -> Plan:
    """The plan of the method `of` with restored positions. Raises UserError for a method that does not exist."""
    if of == "gap":
        raise UserError("gap goes with another method: name it in `of`.")
    more = {"tokens": tokens} if tokens is not None and "tokens" in find(of).options else {}
    share = keep if tokens is None else tokens / target.patches
    return make_plan(of, target, share, positions="restore", **more)
