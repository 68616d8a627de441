"""Residual quantization: each quantizer encodes the residual of those before it.

"Autoregressive Image Generation using Residual Quantization", arXiv:2203.01941, CVPR 2022; in the form of SoundStream,
arXiv:2107.03312, with quantizer dropout, so that any number of the first stages is a code by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jtok.tokenizers.quantizers.bottleneck import Quantized, straight_through
from jtok.tokenizers.quantizers.product import mean_losses


class Residual(nnx.Module):
    """A chain of quantizers of one width; one index a stage."""

    def __init__(self, stages: Sequence[Callable[..., Quantized]]):
        self.stages = nnx.List(list(stages))

    def __call__(
        self, z: Float[Array, "*b d"], *, train: bool = False, count: Int[Array, "*b"] | None = None
    ) -> Quantized:
        """z [..., d] -> values, indices [..., stages]; losses are means over stages.

        count: stages used by each latent (default: all); later indices are -1.
        """
        rest, total, indices, losses = z.astype(jnp.float32), jnp.zeros(z.shape, jnp.float32), [], []
        for i, stage in enumerate(self.stages):
            quantized = stage(rest, train=train)
            used = jnp.ones(z.shape[:-1], bool) if count is None else i < count
            q = jnp.where(used[..., None], lax.stop_gradient(quantized.values), 0.0)
            total, rest = total + q, rest - q
            indices.append(jnp.where(used, quantized.indices, -1))
            losses.append(quantized.losses)
        return Quantized(straight_through(z, total), jnp.stack(indices, -1), mean_losses(losses))

    def decode(self, indices: Int[Array, "*b s"]) -> Float[Array, "*b d"]:
        """The sum of the stages' codes; stages of index -1, and missing last stages, add nothing."""
        total = 0.0
        for i in range(indices.shape[-1]):
            index = indices[..., i]
            total += jnp.where(index[..., None] >= 0, self.stages[i].decode(jnp.maximum(index, 0)), 0.0)
        return total
