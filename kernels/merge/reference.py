"""`merge` in plain jnp: the definition, and the path of every platform without a kernel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def segment_sum(
    x: Float[Array, "b n d"], assign: Int[Array, "b n"], weight: Float[Array, "b n"] | None, *, num: int
) -> tuple[Float[Array, "b num d"], Float[Array, "b num"]]:
    """Sum of weight * x and of weight over the rows assigned to every segment, in float32; -1 joins none.

    One flat scatter-add for the batch: on a CPU 4 times faster than a matmul with one-hot rows.
    """
    b, n, d = x.shape
    inside = (assign >= 0) & (assign < num)
    segment = jnp.where(inside, assign + num * jnp.arange(b)[:, None], b * num).reshape(-1)
    rows = x.astype(jnp.float32)
    rows = rows if weight is None else rows * weight[..., None]
    weight = jnp.ones((b, n), jnp.float32) if weight is None else weight
    total = jax.ops.segment_sum(rows.reshape(-1, d), segment, b * num).reshape(b, num, d)
    return total, jax.ops.segment_sum(weight.reshape(-1), segment, b * num).reshape(b, num)
