"""Finite scalar quantization: every channel is bounded and rounded to a few levels; there is no codebook to learn.

"Finite Scalar Quantization: VQ-VAE Made Simple", arXiv:2309.15505, ICLR 2024. Three variants are in use, which differ
near the borders of the levels: name the one that a checkpoint was trained with.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.tokenizers.quantizers.bottleneck import Quantized, straight_through

#: Levels that the paper recommends for codebooks of 2^n entries.
LEVELS = {
    8: (8, 6, 5),
    10: (8, 5, 5, 5),
    12: (7, 5, 5, 5, 5),
    14: (8, 8, 8, 6, 5),
    16: (8, 8, 8, 5, 5, 5),
}


@dataclasses.dataclass(frozen=True)
class FSQ:
    """Quantizes the d = len(levels) channels of its input to `levels` values each, in [-1, 1].

    variant: `official` (the authors' notebook: shift tan(offset / half), half shrunk by eps), `atanh` (the corrected
    shift, half stretched by eps: zero maps to zero) or `symmetric` (arXiv:2411.19842: floor, levels symmetric about
    zero, two levels allowed). noise: share of latents that in training get uniform noise in place of rounding
    (`symmetric` only). The first channel is the least significant digit of an index.
    """

    levels: tuple[int, ...]
    variant: Literal["official", "atanh", "symmetric"] = "atanh"
    eps: float = 1e-3
    noise: float = 0.0

    def __post_init__(self):
        least = 2 if self.variant == "symmetric" else 3
        if not self.levels or min(self.levels) < least:
            raise UserError(f"FSQ levels are {self.levels}; the variant '{self.variant}' needs at least {least} each.")
        if self.size > 2**31 - 1:
            raise UserError(f"FSQ levels {self.levels} have {self.size} codes; an int32 index holds up to 2^31 - 1.")
        if self.noise and self.variant != "symmetric":
            raise UserError("FSQ noise belongs to the variant 'symmetric'.")

    @property
    def size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    def bound(self, z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """z between the outermost levels, before rounding; `symmetric` counts levels from 0, the others from the
        middle."""
        levels = np.asarray(self.levels)
        z = z.astype(jnp.float32)
        if self.variant == "symmetric":
            return (levels - 1) * (jnp.tanh(z) + 1) / 2
        sign = -1 if self.variant == "official" else 1
        half = (levels - 1) * (1 + sign * self.eps) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        shift = (np.tan if self.variant == "official" else np.arctanh)(offset / half)
        return jnp.tanh(z + shift.astype(np.float32)) * half.astype(np.float32) - offset.astype(np.float32)

    def __call__(self, z: Float[Array, "*b d"], *, train: bool = False, key: Array | None = None) -> Quantized:
        """z [..., d], any float dtype -> values float32 in [-1, 1], indices [...]. `key` feeds the noise."""
        bounded = self.bound(z)
        if self.variant == "symmetric":
            whole = straight_through(bounded, jnp.floor(bounded + 0.5))
            values = 2 * whole / (np.asarray(self.levels, np.float32) - 1) - 1
            if train and self.noise and key is not None:
                values = self._noisy(values, key)
        else:
            values = straight_through(bounded, jnp.round(bounded)) / (np.asarray(self.levels) // 2)
        return Quantized(values, self.indices(values))

    def _noisy(self, values: Array, key: Array) -> Array:
        pick, draw = jax.random.split(key)
        chosen = jax.random.bernoulli(pick, self.noise, (*values.shape[:-1], 1))
        moved = values + jax.random.uniform(draw, values.shape, minval=-0.5, maxval=0.5)
        return jnp.where(chosen, jnp.clip(moved, -1, 1), values)

    def digits(self, values: Float[Array, "*b d"]) -> Int[Array, "*b d"]:
        """Level of every channel, from 0."""
        levels = np.asarray(self.levels)
        if self.variant == "symmetric":
            scaled = (values + 1) * (levels - 1) / 2
        else:
            scaled = values * (levels // 2) + levels // 2
        return jnp.clip(jnp.round(lax.stop_gradient(scaled)), 0, levels - 1).astype(jnp.int32)

    def indices(self, values: Float[Array, "*b d"]) -> Int[Array, "*b"]:
        """The index of each code in [0, size)."""
        return (self.digits(values) * self._basis).sum(-1, dtype=jnp.int32)

    def decode(self, indices: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """The code of each index."""
        levels = np.asarray(self.levels, np.int32)
        digits = (indices[..., None] // self._basis) % levels
        if self.variant == "symmetric":
            return 2 * digits / (levels - 1).astype(np.float32) - 1
        return (digits - levels // 2) / (levels // 2).astype(np.float32)

    @property
    def _basis(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)
