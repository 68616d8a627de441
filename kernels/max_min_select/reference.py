"""`max_min_select` in plain jnp: the definition, and the path of every platform without a kernel."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok.kernels.numerics import LARGE_MATMUL, first_argmax, inverse_norm
from jtok.kernels.transforms import vary_as

FAR = 1e30  # the distance to the nearest of none: finite, and still finite times a weight


class State(NamedTuple):
    """What the loop starts from, all float32 [B, N].

    gain: what the first pick maximises. apart: the distance to the nearest of the chosen set. Later picks maximise
    weight * apart + bonus; the bonus of a token that may not be picked is -inf.
    """

    gain: Float[Array, "b n"]
    apart: Float[Array, "b n"]
    weight: Float[Array, "b n"]
    bonus: Float[Array, "b n"]


def distances(x: Float[Array, "b n d"], metric: str) -> Float[Array, "b n n"]:
    """All pairwise distances in float32: 1 - cosine, squared Euclidean, or the sum of absolute differences."""
    if metric == "l1":
        return lax.map(lambda one: jnp.abs(one[:, None] - one[None]).sum(-1), x.astype(jnp.float32))
    highest = {"precision": lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    b, n, d = x.shape
    if b > 1 and n * n * d >= LARGE_MATMUL:
        dots = lax.map(lambda one: jnp.matmul(one, one.T, **highest), x)
    else:
        dots = jnp.einsum("bnd,bmd->bnm", x, x, **highest)
    if metric == "cosine":
        inverse = inverse_norm(x)
        return 1.0 - dots * inverse[:, :, None] * inverse[:, None]
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), -1)
    return jnp.maximum(squares[:, :, None] + squares[:, None] - 2.0 * dots, 0.0)


def begin(
    weight: Float[Array, "b n"] | None,
    bonus: Float[Array, "b n"] | None,
    first: Int[Array, "b"] | None,
    chosen: Bool[Array, "b n"] | None,
    valid: Bool[Array, "b n"],
    isolation: Float[Array, "b n"] | None,
    apart: Float[Array, "b n"] | None,
) -> State:
    """The first pick of an image: the farthest from those `chosen` if there are any; else `first`, if given; else the
    one with the largest `isolation`."""
    weight = jnp.ones(valid.shape, jnp.float32) if weight is None else weight
    bonus = jnp.zeros(valid.shape, jnp.float32) if bonus is None else bonus
    apart = jnp.full(valid.shape, FAR) if apart is None else apart
    reach = apart if isolation is None else isolation
    if chosen is not None:
        started = chosen.any(-1, keepdims=True)
        reach = jnp.where(started, apart, reach)
        valid = valid & ~chosen
    bonus = jnp.where(valid, bonus, -jnp.inf)
    gain = reach * weight + bonus
    if first is not None:
        only = jnp.where(jnp.arange(valid.shape[1]) == first[:, None], 0.0, -jnp.inf)
        gain = only if chosen is None else jnp.where(started, gain, only)
    return State(gain, apart, weight, bonus)


def begin_from_matrix(distance: Float[Array, "b n n"], weight, bonus, first, chosen, valid) -> State:
    """`begin`, from all distances."""
    isolation = apart = None
    if first is None:
        other = valid[:, None] & ~jnp.eye(valid.shape[1], dtype=bool)
        isolation = jnp.where(other, distance, FAR).min(-1)
    if chosen is not None:
        apart = jnp.where(chosen[:, None], distance, FAR).min(-1)
    return begin(weight, bonus, first, chosen, valid, isolation, apart)


def select(
    x: Float[Array, "b n d"],
    weight: Float[Array, "b n"] | None,
    bonus: Float[Array, "b n"] | None,
    first: Int[Array, "b"] | None,
    chosen: Bool[Array, "b n"] | None,
    valid: Bool[Array, "b n"],
    *,
    k: int,
    metric: str,
) -> Int[Array, "b k"]:
    """The greedy loop over a matrix of all distances."""
    # Without the barrier XLA recomputes the matrix in every step of the loop (9 times slower on a CPU).
    distance = lax.optimization_barrier(distances(x, metric))
    gain, apart, weight, bonus = begin_from_matrix(distance, weight, bonus, first, chosen, valid)
    rows = jnp.arange(x.shape[0])

    def step(t, state):
        gain, apart, bonus, picks = state
        pick = first_argmax(gain)
        remaining = gain.max(-1) > -jnp.inf
        apart = jnp.minimum(apart, distance[rows, pick])
        bonus = bonus.at[rows, pick].set(-jnp.inf)
        picks = picks.at[:, t].set(jnp.where(remaining, pick, -1))
        return apart * weight + bonus, apart, bonus, picks

    picks = jnp.full((x.shape[0], k), -1, jnp.int32)
    return lax.fori_loop(0, k, step, vary_as(x, (gain, apart, bonus, picks)))[-1]
