"""`max_min_select` in plain jnp: the definition, and the path of every platform without a kernel."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok.kernels.numerics import first_argmax, inverse_norm

FAR = float(jnp.finfo(jnp.float32).max)  # finite, so that a weight of zero times it is zero


def distances(x: Float[Array, "b n d"], metric: str) -> Float[Array, "b n n"]:
    """All pairwise distances in float32: 1 - cosine, squared Euclidean, or the sum of absolute differences."""
    x = x.astype(jnp.float32)
    if metric == "l1":
        return lax.map(lambda one: jnp.abs(one[:, None] - one[None]).sum(-1), x)
    if metric == "cosine":
        x = x * inverse_norm(x)[..., None]
    dots = jnp.einsum("bnd,bmd->bnm", x, x, precision=lax.Precision.HIGHEST)
    if metric == "cosine":
        return 1.0 - dots
    squares = jnp.sum(x * x, -1)
    return jnp.maximum(squares[:, :, None] + squares[:, None] - 2.0 * dots, 0.0)


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
    """The loop. The first pick of an image: `first` if given and not -1; else the farthest from those `chosen` if there
    are any; else the most isolated token."""
    b, n, _ = x.shape
    # Without the barrier XLA computes the matrix again in every step of the loop (9 times slower on a CPU).
    distance = lax.optimization_barrier(distances(x, metric))
    rows = jnp.arange(b)
    apart = jnp.full((b, n), FAR)
    reach = apart
    if first is None:
        other = valid[:, None] & ~jnp.eye(n, dtype=bool)
        reach = jnp.where(other, distance, FAR).min(-1)
    if chosen is not None:
        apart = jnp.where(chosen[:, None], distance, FAR).min(-1)
        reach = jnp.where(chosen.any(-1, keepdims=True), apart, reach)
        valid = valid & ~chosen

    def farthest(reach, open_):
        gain = reach if weight is None else reach * weight
        gain = gain if bonus is None else gain + bonus
        pick = first_argmax(jnp.where(open_, gain, -jnp.inf))
        return jnp.where(open_.any(-1), pick, -1)

    def take(pick, apart, open_):
        return jnp.minimum(apart, distance[rows, pick]), open_.at[rows, pick].set(False)

    def step(t, state):
        apart, open_, picks = state
        pick = farthest(apart, open_)
        return *take(pick, apart, open_), picks.at[:, t].set(pick)

    pick = farthest(reach, valid)
    pick = pick if first is None else jnp.where(first >= 0, first, pick)
    picks = jnp.full((b, k), -1, jnp.int32).at[:, 0].set(pick)
    return lax.fori_loop(1, k, step, (*take(pick, apart, valid), picks))[2]
