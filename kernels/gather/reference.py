"""`gather` in plain jnp: the definition, and the path of every platform without a kernel."""

import jax.numpy as jnp
from jaxtyping import Array, Int


def take(x: Array, index: Int[Array, "g k"]) -> Array:
    """Rows of x [G, N, ...] by index [G, K]; zeros where the index is outside [0, N)."""
    n = x.shape[1]
    index = jnp.where(index < 0, n, index).reshape(index.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)
