"""TRIM: keep the patches that CLIP relates to the question, and one token for all the others.

"Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs", arXiv:2409.10994, COLING
2025. Needs no training. It is placed after the tower and reads the question's embedding from CLIP's own text tower; the
tower's features pass through CLIP's final norm and projection for the score only. The released code prefers the
*lowest* dot product, although the paper speaks of similarity: in CLIP's space, related patches and texts have low ones.
Dropped patches are averaged into one token at the end.

The number kept is either given or determined by the scores that are outliers by the interquartile range. The released
code searches for outliers in the whole batch, so that an image depends on its neighbours; here each image can be
treated separately. A model without such a CLIP can compare in its language model's own space (`space="language"`),
where the *highest* dot product marks related tokens; that is no longer the paper's method.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.ops import budget, select
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

Outliers = Literal["none", "image", "batch"]
Space = Literal["clip", "language"]


@dataclasses.dataclass(frozen=True)
class TRIM(Reducer):
    """Keeps a `share` of the real patches, the last one being the mean of those dropped.

    outliers: keep these instead: those of each image, or in each image their average number over the batch, at most a
    quarter. project: maps features to the space of the question's embedding; None = they are already in it.
    """

    share: float
    outliers: Outliers = "none"
    project: Callable[[Array], Array] | None = None
    space: Space = "clip"

    @property
    def reads(self) -> tuple[str, ...]:
        """The question's embedding, or its tokens in the language model."""
        return ("text_embedding",) if self.space == "clip" else ("text_features", "text_valid")

    def whole(self, patches: int) -> int:
        """Most patches that are kept unmerged."""
        return max(1, round(self.share * patches)) - 1 if self.outliers == "none" else -(-patches // 4)

    def count(self, patches: int) -> int:
        return min(patches, self.whole(patches) + 1)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """Softmax over the patches of their relevance to the question."""
        x = (tokens.x if self.project is None else self.project(tokens.x)).astype(jnp.float32)
        if self.space == "clip":
            related = -jnp.einsum("bnd,bd->bn", x, s.text_embedding.astype(jnp.float32))
        else:
            weight = s.text_valid / jnp.maximum(s.text_valid.sum(1, keepdims=True), 1)
            related = jnp.einsum("bnd,btd,bt->bn", x, s.text_features.astype(jnp.float32), weight)
        patch = tokens.mask().at[:, : tokens.special].set(False)
        return jax.nn.softmax(jnp.where(patch, related, -1e30), -1)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        n, cap = patches.count, self.whole(patches.count)
        if cap + 1 >= n:
            return tokens, memory
        score = self.score(tokens, s, memory)[:, tokens.special :]
        best = select.top_k(score, cap, valid=patches.valid, order="score")
        number = self._number(score, patches)
        if number is not None:
            best = jnp.where(jnp.arange(cap) < number[:, None], best, n)  # n: no patch
        stays = select.members(best, n)
        rest = patches.merge(jnp.where(stays, -1, 0), 1, weight=patches.mask().astype(jnp.float32))
        if cap:
            index = select.member_index(stays, cap)
            keep = None if number is None else jnp.take_along_axis(stays, index, 1)
            rest = patches.take(index, keep).concat(rest)
        return special.concat(rest), memory

    def _number(self, score: Float[Array, "B N"], patches: Tokens) -> Int[Array, " B"] | None:
        """Patches kept unmerged in each image; None: as many as there are slots."""
        b, n = score.shape
        if self.outliers == "none":
            if patches.valid is None:
                return None
            return jnp.asarray([self.whole(real) for real in range(n + 1)])[patches.valid.sum(1)]
        real = jnp.where(patches.mask(), score, jnp.nan)
        axis = 1 if self.outliers == "image" else None
        low, high = jnp.nanpercentile(real, jnp.asarray([25.0, 75.0]), axis=axis, keepdims=True)
        outside = real > high + 1.5 * (high - low)
        if self.outliers == "image":
            return outside.sum(1)
        # a lookup table, so that shares are truncated exactly as in float64
        table = [int(n * (total / (b * n))) for total in range(b * n + 1)]
        return jnp.full(b, jnp.asarray(table)[outside.sum()])


@method(
    name="trim",
    title="Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs",
    paper="arXiv:2409.10994, COLING 2025",
    family="vlm-encoder",
    training="optional",
    assignment="hard",
    site="tower output",
    idea="keep patches that CLIP relates to the question",
)
def plan(
    target: Target,
    keep: float = 0.5,
    tokens: int | None = None,
    clip: Any = None,
    outliers: Outliers = "none",
    space: Space = "clip",
) -> Plan:
    """Leaves `tokens` of every crop, or else the share `keep`, including the averaged token; survivors are renumbered.

    clip: a Hugging Face directory of the CLIPModel whose vision side is the tower, or the result of `load_clip_text`
    for one. outliers: `image` keeps the outliers of each image and `batch`, the paper's automatic mode, those of
    the whole batch, both at most a quarter of the patches. Raises UserError for a language model without `clip`, and
    for a CLIP of another width. Without a language model and without `clip`, the question's embedding is expected in
    the space of the tower's features.
    """
    total = budget.visual_tokens(target.patches, keep, tokens)
    if outliers not in ("none", "image", "batch") or space not in ("clip", "language"):
        raise UserError(f"trim has outliers none, image, batch and space clip, language, not '{outliers}', '{space}'.")
    share = total / target.patches
    if space == "language":
        if not target.layers:
            raise UserError("trim cannot compare in a language model's space: none follows this tower.")
        return Plan({"llm.input": TRIM(share, outliers, space=space)}, positions="renumber")
    if clip is None:
        if target.layers:
            raise UserError(
                "trim reads CLIP's text tower: give clip=, a directory of the CLIPModel that the vision tower "
                "belongs to, or space='language' to do without."
            )
        return Plan({"tower.output": TRIM(share, outliers)})
    clip = _loaded(clip)
    if clip.space.scale.shape[0] != target.width:
        raise UserError(
            f"the CLIP given to trim has features of width {clip.space.scale.shape[0]}, the tower of {target.width}: "
            "give the one that the tower belongs to."
        )
    return Plan({"tower.output": TRIM(share, outliers, clip.space)}, positions="renumber", embed=clip.embed)


def _loaded(clip: Any) -> Any:
    if not isinstance(clip, (str, os.PathLike)):
        return clip
    from jtok.models.towers.clip_text import load_clip_text

    return load_clip_text(clip)
