"""What happens to tokens that do not stay: bipartite matchings (ToMe, arXiv:2210.09461) and the pairs they make."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.ops import select


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matching:
    """Sources join targets. The merged set is `kept` tokens in order; source i joins slot `slot[i]` of it."""

    kept: Int[Array, "B K"]
    source: Int[Array, "B r"]
    slot: Int[Array, "B r"]

    def assign(self, n: int) -> Int[Array, "B n"]:
        """Slot of every one of n tokens; -1 for tokens in neither set."""
        slots = jnp.broadcast_to(jnp.arange(self.kept.shape[1], dtype=jnp.int32), self.kept.shape)
        out = jnp.full((self.kept.shape[0], n), -1, jnp.int32)
        fill = jax.vmap(lambda o, k, s, m, t: o.at[k].set(s).at[m].set(t))
        return fill(out, self.kept, slots, self.source, self.slot)

    def unmerge(self, y: Float[Array, "B K D"], n: int) -> Float[Array, "B n D"]:
        """Every one of n tokens gets its slot's row (tokens in neither set get zeros)."""
        return kernels.gather(y, self.assign(n))


def bipartite(
    metric: Float[Array, "B N C"], r: int, special: int = 0, valid: Bool[Array, "B N"] | None = None
) -> Matching:
    """ToMe's bipartite soft matching: even tokens (A) each propose to the most similar odd token (B), the best r merge.

    Special tokens neither merge nor are merged into, and lead the result in their order; then the unmerged tokens of A
    (in order where there are special tokens, by falling similarity where there are none, as the reference code does),
    then B. At most half of the ordinary tokens merge: r is cut to floor((N - special) / 2). Padding never merges.
    """
    b, n, _ = metric.shape
    r = min(r, (n - special) // 2)
    if r <= 0:
        return _nothing(b, n)
    even, odd = jnp.arange(0, n, 2), jnp.arange(1, n, 2)
    allowed = jnp.broadcast_to(odd >= special, (b, len(odd)))
    free = jnp.broadcast_to(even >= special, (b, len(even)))
    if valid is not None:
        allowed, free = allowed & valid[:, 1::2], free & valid[:, ::2]
    value, best = kernels.nearest(metric[:, ::2], metric[:, 1::2], metric="cosine", mask=allowed)
    value = jnp.where(free, value, -jnp.inf)
    order = jax.lax.top_k(value, len(even))[1].astype(jnp.int32)
    merged, unmerged = order[:, :r], order[:, r:]
    if special:
        unmerged = select.ascending(unmerged, len(even))
    in_a, in_b = (special + 1) // 2, special // 2
    lead = jnp.arange(special, dtype=jnp.int32)
    kept = [jnp.broadcast_to(lead, (b, special)), 2 * unmerged[:, in_a:]]
    kept.append(jnp.broadcast_to(odd[in_b:].astype(jnp.int32), (b, len(odd) - in_b)))
    # a slot: after the specials and the unmerged of A come the ordinary tokens of B
    slot = jnp.take_along_axis(best, merged, 1) - in_b + special + unmerged.shape[1] - in_a
    return Matching(jnp.concatenate(kept, 1), 2 * merged, slot.astype(jnp.int32))


def kth_bipartite(metric: Float[Array, "B N C"], k: int) -> Matching:
    """The last of every k tokens is a target, the others all join their most similar target; a tail below k is lost."""
    b, n, _ = metric.shape
    if k <= 1:
        return _nothing(b, n)
    groups = n // k
    index = jnp.arange(groups * k, dtype=jnp.int32).reshape(groups, k)
    source = jnp.broadcast_to(index[:, :-1].reshape(-1), (b, groups * (k - 1)))
    kept = jnp.broadcast_to(index[:, -1], (b, groups))
    return _join(metric, source, kept)


def random_bipartite(metric: Float[Array, "B N C"], noise: Float[Array, "B N"], r: int) -> Matching:
    """The r tokens of lowest `noise` (uniform) all join their most similar among the others; nothing is protected."""
    if r <= 0:
        return _nothing(*noise.shape)
    order = jnp.argsort(noise, 1).astype(jnp.int32)
    return _join(metric, order[:, :r], order[:, r:])


def _join(metric: Array, source: Array, kept: Array) -> Matching:
    rows = kernels.gather(metric, source), kernels.gather(metric, kept)
    return Matching(kept, source, kernels.nearest(*rows, metric="cosine")[1])


def _nothing(b: int, n: int) -> Matching:
    empty = jnp.zeros((b, 0), jnp.int32)
    return Matching(jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (b, n)), empty, empty)
