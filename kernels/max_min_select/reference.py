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
    weight: Float[Array, "b n"],
    bonus: Float[Array, "b n"],
    first: Int[Array, "b"],
    chosen: Bool[Array, "b n"],
    valid: Bool[Array, "b n"],
    *,
    k: int,
    metric: str,
) -> Int[Array, "b k"]:
    """The loop. `first` names the first pick of an image, or is -1: then the most isolated token, or, where some are
    chosen already, the farthest from those."""
    b, n, _ = x.shape
    # Without the barrier XLA computes the matrix again in every step of the loop (9 times slower on a CPU).
    distance = lax.optimization_barrier(distances(x, metric))
    rows = jnp.arange(b)
    other = valid[:, None] & ~jnp.eye(n, dtype=bool)
    isolation = jnp.where(other, distance, FAR).min(-1)
    apart = jnp.where(chosen[:, None], distance, FAR).min(-1)
    started = chosen.any(-1)

    def step(t, state):
        apart, open_, picks = state
        reach = jnp.where((t == 0) & ~started[:, None], isolation, apart)
        gain = jnp.where(open_, reach * weight + bonus, -jnp.inf)
        pick = jnp.where((t == 0) & (first >= 0), first, first_argmax(gain))
        none_left = ~open_.any(-1)
        apart = jnp.minimum(apart, distance[rows, pick])
        open_ = open_.at[rows, pick].set(False)
        return apart, open_, picks.at[:, t].set(jnp.where(none_left, -1, pick))

    state = (apart, valid & ~chosen, jnp.full((b, k), -1, jnp.int32))
    return lax.fori_loop(0, k, step, state)[2]
