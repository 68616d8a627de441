"""LLaVA-PruMerge: keep the outliers of class attention, enrich each with its nearest tokens, add up the rest.

"LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", arXiv:2403.15388, ICCV 2025.
PruMerge+ keeps a spatial sample beside them. Attention is that of one head over the whole width. The authors take
queries and keys of the layer after the one whose features LLaVA uses; here they are those of the tower's last layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.ops import budget, select
from jtok.ops import score as scores
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.sites import TOWER_OUTPUT
from jtok.target import Target
from jtok.tokens import Tokens, invert


def class_row(
    q: Float[Array, "B N C"], k: Float[Array, "B N C"], valid: Bool[Array, "B N"] | None = None
) -> Float[Array, "B N"]:
    """Attention of the first token to all, of one head over the whole width."""
    return scores.attention_rows(q[:, :1, None], k[:, :, None], valid=valid)[:, 0, 0]


def outliers(attention: Float[Array, "B N"], factor: float = 1.5) -> Int[Array, " B"]:
    """How many values of a row exceed its third quartile by `factor` ranges between quartiles; NaN is no value."""
    low, high = jnp.nanpercentile(attention, jnp.array([25.0, 75.0]), axis=1)
    return (attention > (high + factor * (high - low))[:, None]).sum(1)


def with_sample(
    attention: Float[Array, "B N"], top: Int[Array, " B"], step: Int[Array, " B"] | None, cap: int
) -> tuple[Int[Array, "B cap"], Int[Array, " B"]]:
    """(indices, how many count) of the `top` most attended, best first, then of every `step`-th other token.

    The last token is never sampled, as in the authors' code. step: None or 0 = no sample. Padding has attention -inf.
    """
    n = attention.shape[1]
    place = jnp.arange(n)
    order = jnp.argsort(attention, 1, descending=True)
    rank = jnp.argsort(order, 1)
    sampled = jnp.zeros(attention.shape, bool)
    if step is not None:
        every = place % jnp.maximum(step, 1)[:, None] == 0
        sampled = every & (step > 0)[:, None] & (place < n - 1) & jnp.isfinite(attention)
    key = jnp.where(rank < top[:, None], rank, jnp.where(sampled, n + place, 2 * n + place))
    index = jnp.argsort(key, 1)[:, :cap].astype(jnp.int32)
    return index, jnp.minimum((key < 2 * n).sum(1), cap)


def with_grid(attention: Float[Array, "B N"], top: int, grid: Sequence[int]) -> Int[Array, "B K"]:
    """The `top` most attended, best first, then the places of `grid`, some of them again."""
    best = select.top_k(attention, top, order="score")
    places = jnp.asarray(grid, jnp.int32)
    return jnp.concatenate([best, jnp.broadcast_to(places, (len(best), len(grid)))], 1)


def left_over(
    index: Int[Array, "B K"], counts: Bool[Array, "B K"], n: int, valid: Bool[Array, "B N"] | None = None
) -> Bool[Array, "B N"]:
    """The tokens that are not in `index`, but for as many of the first as it names twice: the authors' complement."""
    kept = select.members(jnp.where(counts, index, n), n)
    rest = ~kept if valid is None else ~kept & valid
    twice = counts.sum(1, keepdims=True) - kept.sum(1, keepdims=True)
    return rest & (jnp.cumsum(rest, 1) > twice)


def enriched(
    x: Float[Array, "B N D"],
    keys: Float[Array, "B N C"],
    attention: Float[Array, "B N"],
    index: Int[Array, "B K"],
    counts: Bool[Array, "B K"],
    rest: Bool[Array, "B N"],
    neighbours: int,
) -> Float[Array, "B K D"]:
    """Each kept token plus the attention-weighted sum of the `neighbours` tokens whose keys are most like its own.

    They are chosen among the other kept tokens and `rest`, all as they were. float32.
    """
    b, k = index.shape
    n = x.shape[1]
    unit = keys.astype(jnp.float32)
    unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)
    own = jnp.take_along_axis(unit, index[..., None], 1)
    similarity = jnp.einsum("bkc,bnc->bkn", own, unit)
    among = jnp.take_along_axis(similarity, jnp.broadcast_to(index[:, None], (b, k, k)), 2)
    others = counts[:, None] & ~jnp.eye(k, dtype=bool)
    may = jnp.concatenate([others, jnp.broadcast_to(rest[:, None], (b, k, n))], 2)
    both = jnp.where(may, jnp.concatenate([among, similarity], 2), -jnp.inf)
    value, near = jax.lax.top_k(both, min(neighbours, k + n))
    who = jnp.concatenate([index, jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (b, n))], 1)
    who = jnp.take_along_axis(who, near.reshape(b, -1), 1).reshape(near.shape)
    share = jnp.take_along_axis(attention, who.reshape(b, -1), 1).reshape(near.shape)
    share = jnp.where(jnp.isfinite(value), share, 0)
    weights = jax.vmap(jax.vmap(lambda i, w: jnp.zeros(n).at[i].add(w)))(who, share)
    x = x.astype(jnp.float32)
    return jnp.take_along_axis(x, index[..., None], 1) + jnp.einsum("bkn,bnd->bkd", weights, x)


@dataclasses.dataclass(frozen=True)
class PruMerge(Reducer):
    """Keeps `keep` - 1 patches, most attended first, and one that adds up the rest and comes last.

    outlying: the number is that of the outliers of a row, and `keep` its cap. plus: with a spatial sample. The last
    token owns what is not kept.
    """

    keep: int
    outlying: bool = True
    plus: bool = False
    neighbours: int = 32
    factor: float = 1.5

    reads = ("queries", "keys")

    @property
    def adaptive(self) -> bool:
        """Whether the number depends on the image."""
        return self.outlying

    def count(self, patches: int) -> int:
        return min(self.keep, patches)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """The class token's attention over the whole width."""
        return class_row(_flat(s.queries), _flat(s.keys), tokens.valid)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        if self.keep >= patches.count:
            return tokens, memory
        attention = self.score(tokens, s, memory)[:, tokens.special :]
        slots = self.keep - 1
        index, number = self._chosen(attention, patches.valid, slots)
        counts = jnp.arange(slots) < number[:, None]
        return special.concat(
            self.merged(patches, _flat(s.keys)[:, tokens.special :], attention, index, counts)
        ), memory

    def _chosen(
        self, attention: Float[Array, "B N"], valid: Bool[Array, "B N"] | None, slots: int
    ) -> tuple[Int[Array, "B K"], Int[Array, " B"]]:
        n = attention.shape[1]
        real = jnp.full(len(attention), n) if valid is None else valid.sum(1)
        masked = attention if valid is None else jnp.where(valid, attention, -jnp.inf)
        if self.outlying:
            known = attention if valid is None else jnp.where(valid, attention, jnp.nan)
            top = outliers(known, self.factor)
            step = jnp.where(top > 0, real // jnp.maximum(top, 1) // 3, 0) if self.plus else None
            return with_sample(masked, top, step, slots)
        if self.plus:
            top, spread = slots // 2, slots - slots // 2
            grid = [(2 * i + 1) * n // (2 * spread) for i in range(spread)]
            return with_grid(masked, top, grid), jnp.full(len(attention), slots)
        return select.top_k(masked, slots, order="score"), jnp.minimum(real, slots)

    def merged(
        self,
        patches: Tokens,
        keys: Float[Array, "B N C"],
        attention: Float[Array, "B N"],
        index: Int[Array, "B K"],
        counts: Bool[Array, "B K"],
    ) -> Tokens:
        """Kept tokens with their neighbours in them, then what is left over."""
        n = patches.count
        rest = left_over(index, counts, n, patches.valid)
        x = enriched(patches.x, keys, attention, index, counts, rest, self.neighbours)
        fixed = not self.outlying and patches.valid is None
        kept = patches.take(index, None if fixed else counts)
        # a patch that is kept twice counts once
        holds = jnp.take_along_axis(invert(index, n, counts), index, 1) == jnp.arange(index.shape[1])
        x = x if fixed else jnp.where(kept.mask()[..., None], x, 0)
        kept = kept.replace(x=x.astype(patches.x.dtype), size=jnp.where(holds, kept.size, 0))
        last = patches.merge(jnp.where(rest, 0, -1), 1)
        sums = jnp.einsum("bn,bnd->bd", jnp.where(rest, attention, 0), patches.x.astype(jnp.float32))
        return kept.concat(last.replace(x=sums[:, None].astype(patches.x.dtype)))


def _flat(rows: Float[Array, "B N H Dh"]) -> Float[Array, "B N C"]:
    return rows.reshape(*rows.shape[:2], -1)


@method(
    name="prumerge",
    title="LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models",
    paper="arXiv:2403.15388, ICCV 2025",
    family="vlm-encoder",
    training="optional",
    assignment="hard",
    site="end of the tower",
    idea="keep attention's outliers, add neighbours, sum up the rest",
)
def plan(
    target: Target,
    keep: float = 0.25,
    tokens: int | None = None,
    plus: bool = False,
    adaptive: bool = True,
    neighbours: int = 32,
    factor: float = 1.5,
) -> Plan:
    """Leaves `tokens` of a crop, or round(keep * patches), among them the one that adds up the rest.

    adaptive: as many as there are outliers (of an image; the authors' bound is that of a batch), at most so many; of
    the values of an image no more than a quarter can be outliers.
    plus: PruMerge+, which adds a spatial sample: every (patches // outliers // 3)-th patch, or, where the number is
    fixed, as many as are kept by attention, some of which may be kept twice. The authors' ratio of 1/8 is tokens=73
    of 576 (145 with `plus`) and adaptive=False. Raises UserError for towers without a class token, and for neighbours
    or a factor that are negative.
    """
    if not target.has_class:
        raise UserError("prumerge reads what the class token attends to, but this tower has no class token.")
    if neighbours < 0 or factor < 0:
        raise UserError(f"neighbours is {neighbours} and factor {factor}; give numbers that are not negative.")
    count = budget.visual_tokens(target.patches, keep, tokens)
    return Plan({TOWER_OUTPUT: PruMerge(count, adaptive, plus, neighbours, factor)})
