"""SparseVLM: visually relevant text tokens rate the visual tokens; the best of those dropped are merged in clusters.

"SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", arXiv:2410.04417, ICML 2025, and
its second version (SparseVLM+). Needs no training. Raters are chosen once, by the similarity of the question's
embeddings to the projected image. Before layers 3, 7 and 16 of 32, tokens are kept by the raters' attention to them.
Version 1 recycles: the best 30 % of the dropped tokens are clustered by density peaks, and the cluster means follow
the kept tokens; positions are renumbered. Version 2 divides attention by what rotary positions alone would give, uses
only the heads that attend to the image most, merges nothing and keeps positions.
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

#: Layers before which it is placed; by version and average over 32 layers (of 576 tokens), tokens kept there.
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
    """The question's tokens of above-average similarity to the image; all of them where there are none."""
    similarity = jnp.einsum("bnd,btd->bnt", x, text, preferred_element_type=jnp.float32)
    share = jax.nn.softmax(jnp.where(asked[:, None], similarity, jnp.finfo(jnp.float32).min), -1)
    mean = jnp.where(valid[..., None], share, 0).sum(1) / jnp.maximum(valid.sum(1), 1)[:, None]
    average = jnp.where(asked, mean, 0).sum(1) / jnp.maximum(asked.sum(1), 1)
    chosen = asked & (mean > average[:, None])
    return jnp.where(chosen.any(1, keepdims=True), chosen, asked)


def rank_count(
    p: Float[Array, "B T N"], chosen: Bool[Array, "B T"], valid: Bool[Array, "B N"], scale: float, bias: float
) -> Int[Array, " B"]:
    """Tokens to keep by the rank of the raters' attention to the image: int(rank * scale + bias), all at full rank.

    The paper's rule as in its first release; float32, with the tolerance of `matrix_rank`.
    """
    rows = jnp.where(chosen[..., None] & valid[:, None], p, 0)
    singular = jnp.linalg.svd(jax.lax.stop_gradient(rows), compute_uv=False)
    count = valid.sum(1)
    longer = jnp.maximum(chosen.sum(1), count)
    least = singular.max(1) * longer * jnp.finfo(jnp.float32).eps
    rank = (singular > least[:, None]).sum(1)
    clipped = jnp.clip((rank * scale + bias).astype(jnp.int32), 1, jnp.maximum(count - 1, 1))
    return jnp.where(rank >= count, count, clipped)


@dataclasses.dataclass(frozen=True)
class ChooseRaters(Reducer):
    """Observes; sets `memory["sparsevlm"]` to the `raters` [B,T] and the tokens valid at the `first` site [B,N]."""

    observes = True
    reads = ("text_features", "text_valid")

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        first = tokens.mask()
        chosen = raters(tokens.x, s.text_features, first, s.text_valid)
        return tokens, {**memory, "sparsevlm": {"raters": chosen, "first": first}}


@dataclasses.dataclass(frozen=True)
class SparseVLM(Reducer):
    """Keeps the share `keep` of the `patches` at the first site by the raters' attention, and merges some others.

    adaptive: (scale, bias) of `rank_count`, with `keep` as the cap.
    """

    keep: float
    patches: int
    version: Literal[1, 2] = 1
    adaptive: tuple[float, float] | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """The question's attention, and in version 2 the logits that positions alone would give."""
        return ("text_attention",) + ("rotary_logits",) * (self.version == 2)

    def _sizes(self, first: int, now: int) -> tuple[int, int, int]:
        """Slots: (kept, pool of tokens to merge, clusters)."""
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
        pairs = chosen[:, :, None] & valid[:, None]
        p = jnp.where(pairs[:, None], p / jnp.where(pairs, s.rotary_logits, 1)[:, None], 0)
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
        """(the best dropped tokens, best first, in `slots` slots; number of clusters each row makes of them)."""
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
    """Plain means of density-peak clusters, densest first; densities use as many neighbours as `clusters`.

    groups: how many of the `clusters` a row has. noise: see `cluster.density_peaks`; with two neighbours (the token
    itself and the nearest other) pairs of equal density are common.
    """
    _, assign = cluster.density_peaks(pool.x, clusters, clusters, valid=pool.valid, groups=groups, noise=noise)
    return pool.merge(assign, clusters, weight=pool.mask().astype(jnp.float32))


def kept_of(total: int, patches: int, version: int) -> int:
    """How many to keep by score so that at most `total` of `patches` (at least two) are left, merged ones included."""
    kept = max(1, min(total, patches - 1))
    while version == 1 and kept > 1 and kept + recycled(patches - kept)[1] > total:
        kept -= 1
    return kept


def kept_at(wanted: Sequence[int], patches: int, version: int) -> tuple[list[int], list[int]]:
    """(tokens kept by score, tokens left including merged ones) at each stage, for the `wanted` totals."""
    kept, reached, now = [], [], patches
    for total in wanted:
        if now < 2:
            break
        kept.append(kept_of(total, now, version))
        now = kept[-1] + (recycled(now - kept[-1])[1] if version == 1 else 0)
        reached.append(now)
    return kept, reached


def within(average: int, patches: int, sites: Sequence[int], depth: int, version: int) -> list[int]:
    """Tokens kept at each site so that layers see at most `average` tokens on average, the paper's notion of a budget.

    Raises UserError where the layers before the first site alone exceed it.
    """
    if (patches, depth) == (PATCHES, DEPTH) and average in PUBLISHED[version] and len(sites) == len(LAYERS):
        return list(PUBLISHED[version][average])
    least, n = 0.0, len(sites)
    for last in range(patches - 1, 0, -1):
        falling = [round(patches * (last / patches) ** ((s + 1) / n)) for s in range(n)]
        kept, left = kept_at(falling, patches, version)
        stages = [patches, *left]
        spans = [b - a for a, b in zip((0, *sites), (*sites, depth), strict=True)]
        least = sum(a * b for a, b in zip(stages + stages[-1:] * len(spans), spans, strict=False)) / depth
        if least <= average:
            return kept
    raise UserError(
        f"sparsevlm's average over layers is at least {least:.1f} tokens here, so average_tokens={average} is too few: "
        "ask for more, or set `keep` or `tokens`, which count what is left after the last site."
    )


@method(
    name="sparsevlm",
    title="SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    paper="arXiv:2410.04417, ICML 2025",
    family="vlm-decoder",
    training="none",
    assignment="hard",
    site="before three layers of the language model; raters chosen at its input",
    idea="relevant text rates tokens; dropped ones are clustered",
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
    """The number left after a site includes merged tokens. version: 2 is SparseVLM+.

    `blocks` are the layers of the language model before which it is placed (default: 3, 7 and 16 of 32, scaled to
    the model's depth). counts: tokens of `target.patches` kept by score at each; average_tokens: mean over all layers;
    both replace `keep`. adaptive: (scale, bias) of the paper's rank rule; the counts are then caps. Raises UserError
    for values that do not fit the model, and for fewer tokens than merging leaves.
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
