"""Pooling heads of vision towers."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jtok import kernels
from jtok.layers.block import BlockShape, block_mlp


class AttentionPool(nnx.Module):
    """SigLIP's head: one learned query attends to all tokens, then a residual MLP (arXiv:2303.15343)."""

    def __init__(self, c: BlockShape, rngs: nnx.Rngs):
        shape = (c.heads, c.width // c.heads)
        self.probe = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, c.width)))
        self.q = nnx.LinearGeneral(c.width, shape, dtype=c.compute, rngs=rngs)
        self.kv = nnx.LinearGeneral(c.width, (2, *shape), dtype=c.compute, rngs=rngs)
        self.out = nnx.LinearGeneral(shape, c.width, axis=(-2, -1), dtype=c.compute, rngs=rngs)
        self.norm = nnx.LayerNorm(c.width, epsilon=c.eps, dtype=c.compute, rngs=rngs)
        self.mlp = block_mlp(c, rngs)

    def __call__(self, x: Float[Array, "B N D"], valid: Bool[Array, "B N"] | None = None) -> Float[Array, "B D"]:
        """Pools all valid tokens of every image."""
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        kv = self.kv(x)
        y = self.out(kernels.attention_scores(self.q(probe), kv[:, :, 0], kv[:, :, 1], valid=valid).out)
        return (y + self.mlp(self.norm(y)))[:, 0]
