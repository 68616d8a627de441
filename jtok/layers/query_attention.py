"""Attention of queries to keys and values of another sequence: the cross-attention of learned projectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class QueryAttention(nnx.Module):
    """Multi-head attention with one packed projection for queries, keys and values, started as torch starts it."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        shape = (3, heads, width // heads)
        spread = (6 / (4 * width)) ** 0.5  # Xavier's, over the packed matrix
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (width, *shape), minval=-spread, maxval=spread))
        self.bias = nnx.Param(jnp.zeros(shape))
        normal = nnx.initializers.normal(0.02)
        self.out = nnx.LinearGeneral(shape[1:], width, axis=(-2, -1), kernel_init=normal, rngs=rngs)

    def __call__(
        self, q: Float[Array, "*#L M D"], k: Float[Array, "*#L N D"], v: Float[Array, "*#L N D"]
    ) -> tuple[Float[Array, "*L M D"], Float[Array, "*#L H M N"]]:
        """(what the queries read, their softmax weights in float32). Leading axes are broadcast against each other."""
        kernel, bias = self.kernel[...], self.bias[...]
        q, k, v = (jnp.einsum("...d,dhe->...he", x, kernel[:, i]) + bias[i] for i, x in enumerate((q, k, v)))
        logits = jnp.einsum("...mhe,...nhe->...hmn", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(logits, -1)
        return self.out(jnp.einsum("...hmn,...nhe->...mhe", weights.astype(v.dtype), v)), weights
