"""Diffusion-transformer blocks of FlexTok: norms without parameters, linear layers without bias, adaLN.

"Scalable Diffusion Models with Transformers", arXiv:2212.09748; FlexTok, arXiv:2502.13967, whose attention normalises
queries and keys and scales by 8 / head size (equal to the usual scale at 64).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jtok.layers.mlp import gated, mlp
from jtok.layers.stacked import Stacked, stack_layers


def plain_norm(x: Float[Array, "... D"], eps: float = 1e-5) -> Float[Array, "... D"]:
    """Layer norm without scale and bias, in float32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)).astype(x.dtype)


def sincos_grid(height: int, width: int, dim: int) -> np.ndarray:
    """[dim, height, width]: sines and cosines of two coordinates, in the released layout. On square grids the first
    half varies with the row and the second with the column; on others the two are mixed, as released."""
    omega = 1 / 10000 ** (np.arange(dim // 4) / (dim // 4))
    first, second = np.meshgrid(np.arange(width), np.arange(height), indexing="ij")
    rows = [f(np.outer(x.reshape(-1), omega)) for x in (first, second) for f in (np.sin, np.cos)]
    return np.concatenate(rows, 1).reshape(height, width, dim).transpose(2, 0, 1).astype(np.float32)


def time_features(t: Float[Array, " B"], dim: int, longest: float = 1.0) -> Float[Array, "B dim"]:
    """Cosines and sines of t in [0, longest] at dim/2 frequencies."""
    half = dim // 2
    angles = t[:, None] * (1000 / longest) * jnp.exp(-math.log(256) * jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class TimeEmbedder(nnx.Module):
    """t [B] -> [B,width]."""

    def __init__(self, width: int, rngs: nnx.Rngs, frequencies: int = 256):
        self.frequencies = frequencies
        self.up, self.out = nnx.Linear(frequencies, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)

    def __call__(self, t: Float[Array, " B"]) -> Float[Array, "B D"]:
        return mlp(time_features(t, self.frequencies), self.up, self.out, "silu")


class DiTBlock(nnx.Module):
    """modulations: 0 for a plain block, else the number of sequence parts, each with its own shift, scale and gate."""

    def __init__(self, width: int, head_size: int, modulations: int, rngs: nnx.Rngs, dtype="float32"):
        self.head_size, self.modulations = head_size, modulations
        plain = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        hidden = int(2 * int(4 * width) / 3)
        self.q, self.k, self.v, self.out = (nnx.Linear(width, width, **plain) for _ in range(4))
        self.gate, self.up = (nnx.Linear(width, hidden, **plain) for _ in range(2))
        self.down = nnx.Linear(hidden, width, **plain)
        zero = nnx.initializers.zeros_init()
        self.modulate = (
            nnx.Linear(width, modulations * 6 * width, kernel_init=zero, dtype=dtype, rngs=rngs)
            if modulations
            else None
        )

    def _attend(self, x: Float[Array, "B N D"], mask: Bool[Array, "N N"] | None) -> Float[Array, "B N D"]:
        q, k, v = (f(x).reshape(*x.shape[:2], -1, self.head_size) for f in (self.q, self.k, self.v))
        q, k = plain_norm(q), plain_norm(k)
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=8 / self.head_size)
        return self.out(y.reshape(x.shape))

    def _feed(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return self.down(gated(self.gate(x), self.up(x), "silu"))

    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Bool[Array, "N N"] | None = None,
        time: Float[Array, "B D"] | None = None,
        parts: tuple[int, ...] = (),
    ) -> Float[Array, "B N D"]:
        """time: embedding of t for a modulated block; parts: lengths of the sequence's parts, in order."""
        if self.modulate is None:
            x = x + self._attend(plain_norm(x), mask)
            return x + self._feed(plain_norm(x))
        m = self.modulate(jax.nn.silu(time)).reshape(x.shape[0], self.modulations, 6, -1)
        if self.modulations == 1:
            m = m[:, 0, :, None]
        else:
            m = jnp.concatenate([jnp.repeat(m[:, i, :, None], n, 2) for i, n in enumerate(parts)], 2)
        gate_a, gate_f, shift_a, scale_a, shift_f, scale_f = (m[:, i] for i in range(6))
        x = x + gate_a * self._attend(plain_norm(x) * (1 + scale_a) + shift_a, mask)
        return x + gate_f * self._feed(plain_norm(x) * (1 + scale_f) + shift_f)


class DiT(nnx.Module):
    """A stack of blocks, scanned over layers."""

    def __init__(
        self,
        width: int,
        depth: int,
        head_size: int,
        modulations: int,
        rngs: nnx.Rngs,
        dtype="float32",
        remat: bool = False,
    ):
        self.depth, self.remat = depth, remat
        self.blocks = stack_layers(lambda rngs: DiTBlock(width, head_size, modulations, rngs, dtype), depth, rngs)

    def __call__(self, x, mask=None, time=None, parts=()):
        """As `DiTBlock`."""

        def body(layer: DiTBlock, x: Array) -> tuple[Array, None]:
            return layer(x, mask, time, parts), None

        return Stacked(self.blocks, remat=self.remat).scan(body, x, 0, self.depth)[0]
