"""FoPru: keep the patches, or rows of patches, that receive the most attention from the whole image.

"FoPru: Focal Pruning for Efficient Large Vision-Language Models", arXiv:2411.14164. Needs no training. It is
placed after the tower and reads the attention each patch receives in the last layer, averaged over heads and queries.
The authors released no code: using the last layer that is run, and including the class token among the queries, are
this package's interpretation. Survivors keep their order.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import UserError
from jtok.ops import budget, select
from jtok.plan import Plan
from jtok.pruner import Pruner
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

Query = Literal["all", "class"]
READS: dict[Query, tuple[str, ...]] = {"all": ("attention_received",), "class": ("class_attention",)}


def significance(s: Signals, query: Query) -> Float[Array, "B N"]:
    """Attention received from all tokens, or from the class token, up to a factor common to all tokens."""
    return s.attention_received if query == "all" else s.class_attention.mean(1)


@dataclasses.dataclass(frozen=True)
class FoPru(Pruner):
    """Keeps the most significant patches of the whole image (the rank strategy)."""

    query: Query = "all"

    @property
    def reads(self) -> tuple[str, ...]:
        """The attention of the queries that count."""
        return READS[self.query]

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return significance(s, self.query)


@dataclasses.dataclass(frozen=True)
class FoPruRows(Reducer):
    """Keeps the `rows` rows of `columns` patches with the largest total significance (the row strategy).

    Where tokens of a row have already been removed, the remaining ones are kept and padding fills the rest.
    """

    rows: int
    columns: int
    query: Query = "all"

    @property
    def reads(self) -> tuple[str, ...]:
        """The attention of the queries that count."""
        return READS[self.query]

    def count(self, patches: int) -> int:
        return min(self.rows * self.columns, patches)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """The attention received by the whole row of a patch."""
        member, received = self._rows(tokens, s)
        return jnp.where(member, received[..., None], 0).sum(1)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        kept = self.count(patches.count)
        if kept >= patches.count:
            return tokens, memory
        member, received = self._rows(tokens, s)
        best = select.members(jax.lax.top_k(received, self.rows)[1], received.shape[1])
        mask = (member & best[..., None]).any(1)[:, tokens.special :]
        index = select.member_index(mask, kept)
        # a whole grid fills every slot
        whole = patches.valid is None and patches.count == tokens.grid[-2] * tokens.grid[-1]
        keep = None if whole else jnp.take_along_axis(mask, index, 1)
        return special.concat(patches.take(index, keep)), memory

    def _rows(self, tokens: Tokens, s: Signals) -> tuple[Bool[Array, "B R N"], Float[Array, "B R"]]:
        """Which tokens lie in each row of the grid (special ones and padding in none), and what it receives."""
        row = jnp.round(tokens.position[..., -2]).astype(jnp.int32)
        member = (row[:, None] == jnp.arange(tokens.grid[-2])[:, None]) & tokens.mask()[:, None]
        return member, jnp.where(member, significance(s, self.query)[:, None], 0).sum(2)


@method(
    name="fopru",
    title="FoPru: Focal Pruning for Efficient Large Vision-Language Models",
    paper="arXiv:2411.14164",
    family="vlm-encoder",
    training="none",
    assignment="none",
    site="tower output",
    idea="keep patches or rows that receive most attention",
)
def plan(
    target: Target,
    keep: float = 0.5,
    tokens: int | None = None,
    strategy: Literal["rank", "row"] = "rank",
    query: Query = "all",
) -> Plan:
    """Keeps `tokens` of every crop, or else the share `keep`; survivors are renumbered.

    strategy: `rank` keeps single patches, `row` as many whole rows as fit in that number, at least one. query: whose
    attention counts, that of `all` tokens or of the `class` token. Raises UserError for other values.
    """
    if strategy not in ("rank", "row"):
        raise UserError(f"fopru has no strategy '{strategy}': choose rank or row.")
    if query not in READS:
        raise UserError(f"fopru has no query '{query}': choose all or class.")
    kept = budget.visual_tokens(target.patches, keep, tokens)
    reducer = FoPru(kept, query)
    if strategy == "row":
        rows = target.grid[0] * keep if tokens is None else tokens / target.grid[1]
        reducer = FoPruRows(max(1, int(rows + 1e-9)), target.grid[1], query)
    return Plan({"tower.output": reducer}, positions="renumber")
