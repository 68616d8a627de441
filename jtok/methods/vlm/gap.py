"""GAP: restore the order and position ids of pruned visual tokens, so that a model can still ground objects.

"Grounding-Aware Token Pruning: Recovering from Drastic Performance Drops in Visual Grounding Caused by Pruning",
arXiv:2506.21873. Needs no training. Combines with any method, at any site: `fastv+gap` is FastV with survivors sorted
in prompt order and given the position ids of the unpruned prompt, with gaps; text keeps its own, and the answer
continues from the length of the unpruned prompt. A merged token gets the id of the patch nearest to its centre. Any
method does the same with `positions="restore"`; `positions="keep"` restores ids only, `positions="order"` order only.
"""

from __future__ import annotations

from jtok.errors import UserError
from jtok.plan import Plan
from jtok.registry import Claim, method
from jtok.target import Target


@method(
    name="gap",
    title="Grounding-Aware Token Pruning: Recovering from Drastic Performance Drops in Visual Grounding Caused by "
    "Pruning",
    paper="arXiv:2506.21873",
    family="vlm-decoder",
    training="none",
    assignment="none",
    site="after the method it is joined to",
    idea="restore order and position ids of pruned tokens",
    claims=(
        Claim("LLaVA", "unpruned", 56.14, metric="RefCOCO val (%)"),
        Claim("LLaVA", "pruned, positions renumbered", 15.34, metric="RefCOCO val (%)"),
        Claim("LLaVA", "pruned, with GAP", 51.42, metric="RefCOCO val (%)"),
    ),
)
def plan(target: Target) -> Plan:
    """Restored positions, to be added to a plan that removes tokens. Raises UserError for a tower alone."""
    if not target.layers:
        raise UserError("gap restores positions in a language model, and this tower has none: load one that has.")
    return Plan(positions="restore")
