"""SparseVLM: text tokens that look at the image rate its tokens; of those dropped, the best are merged in clusters.

"SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", arXiv:2410.04417, ICML 2025, and
its second version (SparseVLM+). Needs no training. Raters are chosen once, by the likeness of the question's embeddings
to the projected image. Before layers 3, 7 and 16 of 32, tokens are kept by the raters' attention to them. Version 1
recycles: the best 30 % of what is dropped are clustered by density peaks, and a cluster's mean stands behind the kept
tokens; positions are counted anew. Version 2 divides attention by what rotary positions alone would give, listens to
the heads that look at the image most, merges nothing and keeps positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.ops import budget, cluster, schedule, select
from jtok.ops.schedule import Asked
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

#: Layers before which it is placed; by version, tokens kept there for an average of so many of 576 over 32 layers.
LAYERS, DEPTH, PATCHES, PRIORITY_HEADS = (3, 7, 16), 32, 576, 14
PUBLISHED = {
    1: {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    2: {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}


def recycled(dropped):
    """(how many of the dropped tokens are merged, into how many clusters); numbers or arrays."""
    pool = 3 * dropped // 10 + 1
    return pool, pool // 10 + 1


def raters(
    x: Float[Array, "B N D"], text: Float[Array, "B T D"], valid: Bool[Array, "B N"], asked: Bool[Array, "B T"]
) -> Bool[Array, "B T"]:
    """The question's tokens to which the image is more alike than on average; all of them where none is."""
    likeness = jnp.einsum("bnd,btd->bnt", x, text, preferred_element_type=jnp.float32)
    share = jax.nn.softmax(jnp.where(asked[:, None], likeness, jnp.finfo(jnp.float32).min), -1)
    mean = jnp.where(valid[..., None], share, 0).sum(1) / jnp.maximum(valid.sum(1), 1)[:, None]
    average = jnp.where(asked, mean, 0).sum(1) / jnp.maximum(asked.sum(1), 1)
    chosen = asked & (mean > average[:, None])
    return jnp.where(chosen.any(1, keepdims=True), chosen, asked)


def rank_count(
    p: Float[Array, "B T N"], chosen: Bool[Array, "B T"], valid: Bool[Array, "B N"], scale: float, bias: float
) -> Int[Array, " B"]:
    """Tokens to keep by the rank of the raters' attention to the image: int(rank * scale + bias), all at full rank.

    The paper's rule as its first release has it; float32, tolerance as of `matrix_rank`.
    """
    rows = jnp.where(chosen[..., None] & valid[:, None], p, 0)
    singular = jnp.linalg.svd(jax.lax.stop_gradient(rows), compute_uv=False)
    count = valid.sum(1)
    longer = jnp.maximum(chosen.sum(1), count)
    least = singular.max(1) * longer * jnp.finfo(jnp.float32).eps
    rank = (singular > least[:, None]).sum(1)
    few = jnp.clip((rank * scale + bias).astype(jnp.int32), 1, jnp.maximum(count - 1, 1))
    return jnp.where(rank >= count, count, few)


class ChooseRaters(Reducer):
    """Looks only; `memory["sparsevlm"]` gets the `raters` [B,T] and which tokens were there at `first` [B,N]."""

    reads = ("text_features", "text_valid")

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        first = tokens.mask()
        chosen = raters(tokens.x, s.text_features, first, s.text_valid)
        return tokens, {**memory, "sparsevlm": {"raters": chosen, "first": first}}


@dataclasses.dataclass(frozen=True)
class SparseVLM(Reducer):
    """Keeps the share `keep` of the `patches` at the first site by the raters' attention, and merges of the others.

    adaptive: (scale, bias) of `rank_count`, with `keep` as cap.
    """

    keep: float
    patches: int
    version: Literal[1, 2] = 1
    adaptive: tuple[float, float] | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The question's attention, and in version 2 what positions alone would make of it."""
        return ("text_attention",) + ("rotary_logits",) * (self.version == 2)

    def _sizes(self, first: int, now: int) -> tuple[int, int, int]:
        """Slots: (kept, pool of what is merged, clusters)."""
        kept = min(budget.share_of(first, self.keep), max(now - 1, 1))
        if self.version == 2 or now < 2:
            return kept, 0, 0
        return kept, *recycled(now - (1 if self.adaptive else kept))

    def count(self, patches: int) -> int:
        kept, _, clusters = self._sizes(self.patches, patches)
        return kept + clusters

    def attention(self, s: Signals, valid: Bool[Array, "B N"], chosen: Bool[Array, "B T"]) -> Float[Array, "B T N"]:
        """The question's attention to the image, mean over the heads that count."""
        p = s.text_attention.astype(jnp.float32)
        if self.version == 1:
            return p.mean(1)
        there = chosen[:, :, None] & valid[:, None]
        p = jnp.where(there[:, None], p / jnp.where(there, s.rotary_logits, 1)[:, None], 0)
        heads = min(PRIORITY_HEADS, p.shape[1])
        best = select.members(select.top_k(p.sum((2, 3)), heads), p.shape[1])
        return jnp.where(best[..., None, None], p, 0).sum(1) / heads

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        chosen = memory["sparsevlm"]["raters"]
        p = jnp.where(chosen[..., None], self.attention(s, tokens.mask(), chosen), 0)
        return p.sum(1) / jnp.maximum(chosen.sum(1), 1)[:, None]

    def each(self, tokens: Tokens, s: Signals, memory: Memory) -> Int[Array, " B"]:
        """Tokens that a row keeps by score."""
        chosen, first = memory["sparsevlm"]["raters"], memory["sparsevlm"]["first"]
        now = tokens.mask().sum(1)
        fixed = budget.share_of_each(first.sum(1), first.shape[1], self.keep)
        if self.adaptive is not None:
            p = self.attention(s, tokens.mask(), chosen)
            return jnp.minimum(rank_count(p, chosen, tokens.mask(), *self.adaptive), fixed)
        return jnp.minimum(fixed, jnp.maximum(now - 1, jnp.minimum(now, 1)))

    def pool(
        self, tokens: Tokens, score: Float[Array, "B N"], dropped: Bool[Array, "B N"], slots: int
    ) -> tuple[Tokens, Int[Array, " B"]]:
        """(the best of what is dropped, best first, in so many slots; clusters that a row makes of them)."""
        count = dropped.sum(1)
        size, groups = (jnp.where(count > 0, n, 0) for n in recycled(count))
        best = select.top_k(score, slots, valid=dropped, order="score")
        real = (jnp.arange(slots) < size[:, None]) & jnp.take_along_axis(dropped, best, 1)
        return tokens.take(best, real), groups

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        n, first = tokens.count, memory["sparsevlm"]["first"].shape[1]
        cap, slots, clusters = self._sizes(first, n)
        score = self.score(tokens, s, memory)
        index, counts = select.top_each(score, self.each(tokens, s, memory), cap, valid=tokens.valid)
        known = tokens.valid is None and self.adaptive is None
        kept = tokens.take(index, None if known else counts)
        if not clusters:
            return kept, memory
        dropped = tokens.mask() & ~select.members(jnp.where(counts, index, n), n)
        pool, groups = self.pool(tokens, score, dropped, slots)
        merged = clustered(pool, clusters, jnp.minimum(groups, clusters))
        return kept.concat(merged.replace(valid=None) if known else merged), memory


def clustered(
    pool: Tokens, clusters: int, groups: Int[Array, " B"] | None = None, noise: Float[Array, "B N"] | None = None
) -> Tokens:
    """Plain means of density-peak clusters, densest first; a token's density comes from as many neighbours.

    groups: how many of the `clusters` a row has. noise: see `cluster.density_peaks`; with two neighbours, the token
    itself and the next, twins of equal density are the rule.
    """
    _, assign = cluster.density_peaks(pool.x, clusters, clusters, valid=pool.valid, groups=groups, noise=noise)
    return pool.merge(assign, clusters, weight=pool.mask().astype(jnp.float32))


def kept_of(total: int, patches: int, version: int) -> int:
    """How many to keep by score so that, with what is merged, at most `total` of `patches` are left (at least two)."""
    kept = max(1, min(total, patches - 1))
    while version == 1 and kept > 1 and kept + recycled(patches - kept)[1] > total:
        kept -= 1
    return kept


def kept_at(left: Sequence[int], patches: int, version: int) -> tuple[list[int], list[int]]:
    """(tokens kept by score, tokens left with what is merged) at each stage, for `left` wanted after each."""
    kept, reached, now = [], [], patches
    for total in left:
        if now < 2:
            break
        kept.append(kept_of(total, now, version))
        now = kept[-1] + (recycled(now - kept[-1])[1] if version == 1 else 0)
        reached.append(now)
    return kept, reached


def within(average: int, patches: int, sites: Sequence[int], depth: int, version: int) -> list[int]:
    """Tokens kept at each site so that a layer sees at most `average`, the paper's notion of a budget.

    Raises UserError where the layers before the first site see more than that already.
    """
    if (patches, depth) == (PATCHES, DEPTH) and average in PUBLISHED[version] and len(sites) == len(LAYERS):
        return list(PUBLISHED[version][average])
    least, n = 0.0, len(sites)
    for last in range(patches - 1, 0, -1):
        falling = [round(patches * (last / patches) ** ((s + 1) / n)) for s in range(n)]
        kept, left = kept_at(falling, patches, version)
        seen = [patches, *left]
        spans = [b - a for a, b in zip((0, *sites), (*sites, depth), strict=True)]
        least = sum(a * b for a, b in zip(seen + seen[-1:] * len(spans), spans, strict=False)) / depth
        if least <= average:
            return kept
    raise UserError(
        f"sparsevlm's average over layers is {least:.1f} tokens at least here, so that average_tokens={average} is too "
        "few: ask for more, or for `keep` or `tokens`, what is left after the last site."
    )


@method(
    name="sparsevlm",
    title="SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    paper="arXiv:2410.04417, ICML 2025",
    family="vlm-decoder",
    training="none",
    assignment="hard",
    site="before three layers of the language model; chooses raters at its input",
    idea="text that sees the image rates it; dropped tokens cluster",
    claims=(
        Claim("LLaVA", "78 % fewer tokens", 93.0, metric="accuracy kept (%)"),
        Claim("LLaVA", "78 % fewer tokens, low end", 61.0, metric="FLOPs saved (%)"),
        Claim("LLaVA", "78 % fewer tokens, high end", 67.0, metric="FLOPs saved (%)"),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    version: Literal[1, 2] = 1,
    counts: Sequence[int] | None = None,
    average_tokens: int | None = None,
    adaptive: tuple[float, float] | None = None,
    **asked: Unpack[Asked],
) -> Plan:
    """What is left after a site includes merged tokens. version: 2 is SparseVLM+.

    `blocks` are the layers of the language model before which it is placed (default: 3, 7 and 16 of 32, moved to the
    model's depth). counts: tokens of `target.patches` kept by score at each, or average_tokens: mean over all layers,
    in place of `keep`. adaptive: (scale, bias) of the paper's rank rule; the counts are then caps. Raises UserError for
    what does not fit the model, and for fewer tokens than merging leaves.
    """
    if version not in PUBLISHED:
        raise UserError(f"sparsevlm has no version {version}: choose 1 or 2.")
    n, depth = target.patches, target.layers
    steps = schedule.make(n, depth, keep, asked, schedule.blocks_at(LAYERS, DEPTH, depth), whole=round)
    if average_tokens is not None:
        counts = within(budget.visual_tokens(n, keep, average_tokens), n, steps.blocks, depth, version)
    elif counts is None:
        counts, left = kept_at(steps.counts, n, version)
        if asked.get("tokens") not in (None, n, *left[-1:]):
            raise UserError(
                f"sparsevlm merges what it drops and cannot leave {asked['tokens']} of {n} tokens: at least {left[-1]} "
                "are left, or version=2 merges nothing."
            )
    elif len(counts) != len(steps.blocks) or not all(1 <= k <= n for k in counts):
        raise UserError(f"sparsevlm is placed at {len(steps.blocks)} sites: give as many counts, from 1 to {n}.")
    reducers = [SparseVLM(k / n, n, version, adaptive) for k in counts]
    sites = {f"llm.layer.{i}.input": r for i, r in zip(steps.blocks, reducers, strict=False)}
    return Plan({"llm.input": ChooseRaters(), **sites}, positions="renumber" if version == 1 else "keep")
