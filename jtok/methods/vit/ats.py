"""ATS: sample tokens by their contribution to the class token; the number kept varies from image to image.

"Adaptive Token Sampling For Efficient Vision Transformers", arXiv:2111.15667, ECCV 2022. Needs no training. The paper
samples rows of the attention matrix before it is applied to the values; as every later step of the block works row by
row, taking rows after the attention's residual is equivalent, and so it is placed after the attention. Two
implementations exist and select different tokens; both are available here. Slots that an image leaves empty are marked
invalid.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.ops import schedule, select
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

Variant = Literal["simple", "official"]


def grid(samples: int) -> np.ndarray:
    """Sampling points (2j+1)/(2K), float32; K-1 of them, or K where rounding includes the excluded end."""
    start, end, step = 1 / (2 * samples), (2 * samples - 1) / (2 * samples), 1 / samples
    points = max(1, math.ceil((end - start) / step))
    return (start + step * np.arange(points)).astype(np.float32)


def simple_score(attention: Float[Array, "B H N"], values: Float[Array, "B N H Dh"]) -> Float[Array, "B N"]:
    """Class attention times the norm of the value, summed over heads; sums to one (up to an added 1e-6)."""
    score = jnp.einsum("bhn,bnh->bn", attention, jnp.linalg.norm(values.astype(jnp.float32), axis=-1))
    return score / (score.sum(1, keepdims=True) + 1e-6)


def official_score(attention: Float[Array, "B H N"], values: Float[Array, "B N H Dh"]) -> Float[Array, "B N"]:
    """Class attention summed over heads, times the norm of the concatenated value vector; sums to one."""
    flat = values.astype(jnp.float32).reshape(*values.shape[:2], -1)
    score = attention.sum(1) * jnp.linalg.norm(flat, axis=-1)
    return score / jnp.maximum(score.sum(1, keepdims=True), 1e-30)


def simple_sample(
    score: Float[Array, "B N"], samples: int, valid: Bool[Array, "B N"] | None = None
) -> Bool[Array, "B N"]:
    """Tokens whose cumulative score is nearest to one of the points of `grid(samples)`."""
    cdf = jnp.cumsum(score, 1)
    if valid is not None:
        cdf = jnp.where(valid, cdf, cdf + 0.1)
    picks = _nearest(jnp.asarray(grid(samples)), cdf)
    return select.members(picks, score.shape[1])


def official_sample(score: Float[Array, "B N"], samples: int) -> tuple[Bool[Array, "B N"], Int[Array, "B N"]]:
    """(which ranks of the ascending order are sampled, the order: token at each rank).

    The cumulative score, in ascending order and rescaled to [0,1] per image, is sampled at `samples` points spaced
    evenly from its smallest positive value to 1. Tokens of zero score (padding) and the lowest one are never sampled.
    """
    value, order = jax.lax.top_k(-score, score.shape[1])
    cdf = jnp.cumsum(-value, 1)
    low, high = cdf[:, :1], cdf[:, -1:]
    cdf = (cdf - low) / jnp.maximum(high - low, 1e-30)
    first = jnp.where(cdf > 0, cdf, 1.0).min(1, keepdims=True)
    j = jnp.arange(samples, dtype=jnp.float32)
    points = first + (j - first * j) / max(samples - 1, 1)
    return select.members(_nearest(points, cdf), score.shape[1]), order.astype(jnp.int32)


def _nearest(points: Float[Array, "*B R"], cdf: Float[Array, "B N"]) -> Int[Array, "B R"]:
    return jnp.abs(points[..., :, None] - cdf[:, None, :]).argmin(-1)


@dataclasses.dataclass(frozen=True)
class ATS(Reducer):
    """Keeps at most as many patches as there are sampling points: `samples` ("official") or about one less ("simple").

    Survivors are in spatial order ("simple") or by increasing score ("official"). The official code always uses one
    point per patch of the image and left-pads a shorter token set with zeros, which no point can sample; fewer points
    give a static cap.
    """

    samples: int
    variant: Variant = "simple"
    adaptive = True
    reads = ("class_attention", "values")

    def count(self, patches: int) -> int:
        return min(patches, self.samples if self.variant == "official" else len(grid(self.samples)))

    def score(self, tokens: Tokens, s: Signals, memory: Memory):
        """[B,N], 0 for special tokens; sums to one."""
        k = tokens.special
        rate = official_score if self.variant == "official" else simple_score
        return jnp.pad(rate(s.class_attention[:, :, k:], s.values[:, k:]), ((0, 0), (k, 0)))

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        cap = self.count(patches.count)
        score = self.score(tokens, s, memory)[:, tokens.special :]
        if self.variant == "official":
            hit, order = official_sample(score, self.samples)
            index = jnp.take_along_axis(order, select.member_index(hit, cap), 1)
        else:
            hit = simple_sample(score, self.samples, patches.valid)
            index = select.member_index(hit, cap)
        keep = jnp.arange(cap) < hit.sum(1, keepdims=True)
        return special.concat(patches.take(index, keep)), memory


@method(
    name="ats",
    title="Adaptive Token Sampling For Efficient Vision Transformers",
    paper="arXiv:2111.15667, ECCV 2022",
    family="vit-prune",
    training="optional",
    assignment="none",
    site="three blocks (official code: 3 to 11 of 12), after attention",
    idea="sample tokens adaptively by class attention and value norm",
    uses_position=True,  # "simple" accumulates the scores in spatial order
)
def plan(
    target: Target,
    keep: float = 0.5,
    variant: Variant = "simple",
    **asked: Unpack[Asked],
) -> Plan:
    """Amounts are caps on the patches left; an image may need fewer.

    variant: `simple` samples at three blocks with int(rate_i * patches) + 1 points, the rates decreasing to `keep`;
    `official` samples int(keep * patches) points at every block from a quarter of the depth on (`keep=1` is the
    released setting, where all savings come from points that sample the same token). Rounding adds one point for
    some numbers of points; `tokens` and `r` are never exceeded.
    """
    if variant not in ("simple", "official"):
        raise UserError(f"ats has no variant '{variant}'; it is simple or official.")
    if variant == "official":
        blocks = tuple(range(max(1, target.depth // 4), target.depth))
        steps = schedule.make(target.patches, target.depth, keep, asked, blocks, first=0, fall="flat")
        samples = steps.counts
    else:
        steps = schedule.make(target.patches, target.depth, keep, asked, first=0)
        exact = asked.get("tokens") is not None or asked.get("r") is not None
        samples = tuple(k if exact and len(grid(k + 1)) > k else k + 1 for k in steps.counts)
    return Plan(at_blocks(steps.blocks, "after_attention", [ATS(k, variant) for k in samples]))
