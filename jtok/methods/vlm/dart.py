"""DART: keep a few pivot tokens and the visual tokens that duplicate them least.

"Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", arXiv:2502.11494. Needs no
training and no attention map. It is placed after the second layer of the language model. Pivots are the visual and
question tokens with the largest keys (L1 norm over all heads); each pivot in turn keeps the visual tokens least similar
to it (cosine, features after the final norm). Survivors keep their order and positions. Pivots are processed in prompt
order; the released code iterates over a Python set, whose order is the same only below 32 tokens.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.errors import UserError
from jtok.ops import budget, select
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Dart(Reducer):
    """Keeps about the share `keep` of a row's tokens: the visual `pivots`, and the same number for each of them and for
    each of the question's `text_pivots`. The visual token of largest key replaces pivots that a short question lacks.
    """

    keep: float
    pivots: int = 4
    text_pivots: int = 4
    reads = ("keys", "text_keys", "text_valid", "normed", "text_normed")

    def sizes(self, patches: int) -> tuple[int, int]:
        """(visual pivots, tokens that each pivot keeps) for a row of `patches`."""
        pivots = min(self.pivots, budget.share_of(patches, self.keep), patches)
        wanted = min(patches * self.keep + 1e-9, patches - pivots)
        return pivots, int(wanted // (pivots + self.text_pivots)) if pivots else 0

    def count(self, patches: int) -> int:
        pivots, each = self.sizes(patches)
        return pivots + each * (pivots + self.text_pivots)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        n, valid = tokens.count, tokens.mask()
        table = jnp.asarray([self.sizes(i) for i in range(n + 1)], jnp.int32)[valid.sum(1)]
        cap, each = self.sizes(n)
        index, counts, features = self._pivots(tokens, s, table[:, 0], cap)
        free = valid & ~select.members(jnp.where(counts[:, :cap], index, n), n)
        if each:
            free = _least_similar(features, s.normed, free, jnp.where(counts, table[:, 1:], 0), each)
        kept, cap = valid & ~free, self.count(n)
        flags = None if tokens.valid is None else jnp.arange(cap) < kept.sum(1, keepdims=True)
        return tokens.take(select.member_index(kept, cap), flags), memory

    def _pivots(self, tokens: Tokens, s: Signals, visual_count: Int[Array, " B"], cap: int):
        """(visual pivots [B,cap], which pivots count [B,P], features of all pivots [B,P,D])."""
        size, text_size = (jnp.abs(k.astype(jnp.float32)).sum((2, 3)) for k in (s.keys, s.text_keys))
        index, counts = select.top_each(size, visual_count, cap, valid=tokens.valid)
        largest = select.top_k(size, 1, valid=tokens.valid)
        stand_in = kernels.gather(s.normed, largest)
        text_count = min(self.text_pivots, text_size.shape[1])
        text_index = select.top_k(text_size, text_count, valid=s.text_valid)
        is_text = jnp.take_along_axis(s.text_valid, text_index, 1)[..., None]
        text = jnp.where(is_text, kernels.gather(s.text_normed, text_index), stand_in)
        padding = jnp.repeat(stand_in, self.text_pivots - text_count, 1)
        features = jnp.concatenate([kernels.gather(s.normed, index), text, padding], 1)
        always = jnp.ones((index.shape[0], self.text_pivots), bool)
        return index, jnp.concatenate([counts, always], 1), features


def _least_similar(
    pivots: Float[Array, "B P D"], x: Float[Array, "B N D"], free: Bool[Array, "B N"], each: Int[Array, "B P"], cap: int
) -> Bool[Array, "B N"]:
    """The tokens still `free` once each pivot in turn has taken the `each` (at most `cap`) ones least similar to it."""
    n = free.shape[1]
    pivots, x = (a.astype(jnp.float32) for a in jax.lax.stop_gradient((pivots, x)))
    pivots, x = (a / jnp.maximum(jnp.linalg.norm(a, axis=-1, keepdims=True), 1e-8) for a in (pivots, x))
    dissimilarity = jnp.moveaxis(-jnp.einsum("bpd,bnd->bpn", pivots, x), 1, 0)

    def take(free, pivot):
        score, number = pivot
        best = select.top_k(score, cap, valid=free, order="score")
        taken = jnp.where(jnp.arange(cap) < number[:, None], best, n)
        return free & ~select.members(taken, n), None

    return jax.lax.scan(take, free, (dissimilarity, each.T))[0]


@method(
    name="dart",
    title="Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
    paper="arXiv:2502.11494",
    family="vlm-decoder",
    training="none",
    assignment="none",
    site="before the third layer of the language model",
    idea="keep pivots and the tokens least similar to them",
    uses_position=True,  # pivots are processed in prompt order
    claims=(
        Claim("LLaVA", "88.9 % of visual tokens pruned", 1.99, metric="speed-up in all"),
        Claim("LLaVA", "88.9 % of visual tokens pruned", 2.99, metric="speed-up of the prefill"),
    ),
)
def plan(
    target: Target,
    keep: float = 0.222,
    tokens: int | None = None,
    layer: int | None = None,
    pivots: int = 4,
    text_pivots: int = 4,
) -> Plan:
    """`keep` is 1 - r in the paper, `tokens` its budget; slightly more may be left, as it excludes visual pivots.

    layer: the first that sees the reduced set (default 2, or the last layer of a shallower model). Raises UserError
    for a layer that the model does not have, and for fewer than one visual pivot.
    """
    layer = min(2, target.layers - 1) if layer is None else layer
    if not 0 < layer < target.layers:
        raise UserError(f"dart cannot be placed before layer {layer}: choose 1 to {target.layers - 1}.")
    if pivots < 1 or text_pivots < 0:
        raise UserError(f"dart needs at least one visual pivot: {pivots} and {text_pivots} text ones are asked for.")
    share = keep if tokens is None else budget.visual_tokens(target.patches, keep, tokens) / target.patches
    return Plan({f"llm.layer.{layer}.input": Dart(share, pivots, text_pivots)})
