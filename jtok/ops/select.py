"""Which tokens stay: index sets of static size. Ties go to the lowest index."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError

Order = Literal["spatial", "score"]


def top_k(
    score: Float[Array, "B N"], k: int, *, valid: Bool[Array, "B N"] | None = None, order: Order = "spatial"
) -> Int[Array, "B k"]:
    """Indices of the k highest scores, ascending (`spatial`) or best first (`score`). Padding is chosen last.

    Raises UserError if k exceeds N.
    """
    n = score.shape[1]
    if k > n:
        raise UserError(f"cannot keep {k} tokens out of {n}: ask for fewer tokens.")
    score = score.astype(jnp.float32)
    score = score if valid is None else jnp.where(valid, score, -jnp.inf)
    index = jax.lax.top_k(score, k)[1].astype(jnp.int32)
    return ascending(index, n) if order == "spatial" else index


def top_each(
    score: Float[Array, "B N"], each: Int[Array, " B"], cap: int, *, valid: Bool[Array, "B N"] | None = None
) -> tuple[Int[Array, "B cap"], Bool[Array, "B cap"]]:
    """(indices, which of them count): in every row its `each` (at most `cap`) highest scores, ascending, in front."""
    n = score.shape[1]
    best = top_k(score, cap, valid=valid, order="score")
    counts = jnp.arange(cap) < each[:, None]
    return member_index(members(jnp.where(counts, best, n), n), cap), counts


def ascending(index: Int[Array, "B K"], n: int) -> Int[Array, "B K"]:
    """The same indices (distinct, below n) in ascending order."""
    return member_index(members(index, n), index.shape[1])


def members(index: Int[Array, "B K"], n: int) -> Bool[Array, "B n"]:
    """True for the tokens named in `index`."""
    return jax.vmap(lambda i: jnp.zeros(n, bool).at[i].set(True, mode="drop"))(index)


def member_index(mask: Bool[Array, "B N"], k: int) -> Int[Array, "B k"]:
    """Indices of the first k True entries, ascending, followed by those of False entries if there are fewer."""
    n = mask.shape[1]
    # distinct descending keys: True entries first, each group by position
    keys = jnp.where(mask, 2 * n, n) - jnp.arange(n)
    return jax.lax.top_k(keys, k)[1].astype(jnp.int32)


def rest(index: Int[Array, "B K"], n: int) -> Int[Array, "B M"]:
    """The indices below n that are not in `index` (distinct), ascending."""
    return member_index(~members(index, n), n - index.shape[1])


def strided(n: int, k: int) -> list[int]:
    """k indices from 0 in steps of max(1, n // k): the targets of VisionZip's contextual tokens (arXiv:2412.04467)."""
    return list(range(0, n, max(1, n // k)))[:k]


def gumbel_keep(
    log_odds: Float[Array, "B N 2"], noise: Float[Array, "B N 2"], temperature: float = 1.0
) -> Float[Array, "B N"]:
    """A random 0/1 keep decision per token with the gradient of its soft form (straight-through Gumbel-softmax).

    log_odds: log-probabilities (or logits) of keeping and dropping. noise: standard Gumbel draws. Source: "Categorical
    Reparameterization with Gumbel-Softmax", arXiv:1611.01144.
    """
    soft = jax.nn.softmax((log_odds + noise) / temperature, -1)[..., 0]
    hard = jnp.argmax(log_odds + noise, -1) == 0
    return hard + (soft - jax.lax.stop_gradient(soft))


def gather_scores(score: Float[Array, "B N"], index: Int[Array, "B K"]) -> Float[Array, "B K"]:
    """The scores at `index`."""
    return jnp.take_along_axis(score, index, 1)
