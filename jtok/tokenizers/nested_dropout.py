"""Nested dropout: the tail of an ordered code is dropped in training, so that every prefix is a usable code.

"Learning Ordered Representations with Nested Dropout", arXiv:1402.0915; for image tokens: FlexTok, arXiv:2502.13967.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.errors import UserError


def round_up_to_power(count: Int[Array, "..."]) -> Int[Array, "..."]:
    """The smallest power of two that is at least count."""
    powers = 2 ** jnp.arange(31, dtype=jnp.int32)
    return powers[jnp.searchsorted(powers, count)]


def draw_counts(
    key: Array, batch: int, most: int, kind: Literal["uniform", "log_uniform", "pow2", "uniform_pow2"] = "uniform_pow2"
) -> Int[Array, " B"]:
    """Number of latents kept per image: uniform in 1..most, a uniform power of two, or the former rounded up to one.

    log_uniform (ours): n latents with probability proportional to log((n + 1) / n), so that short codes are trained as
    much as long ones. Raises UserError for powers of two if `most` is not one.
    """
    if kind == "uniform":
        return jax.random.randint(key, (batch,), 1, most + 1)
    if kind == "log_uniform":
        drawn = jnp.exp(jax.random.uniform(key, (batch,)) * jnp.log(most + 1.0))
        return jnp.clip(jnp.floor(drawn).astype(jnp.int32), 1, most)
    if most & (most - 1):
        raise UserError(f"nested dropout over powers of two needs a power of two latents, not {most}.")
    if kind == "pow2":
        return 2 ** jax.random.randint(key, (batch,), 0, most.bit_length())
    return round_up_to_power(jax.random.randint(key, (batch,), 1, most + 1))


def fill_tail(x: Float[Array, "B K D"], count: Int[Array, " B"], token: Float[Array, "D"]) -> Float[Array, "B K D"]:
    """x with the latents after `count` replaced by a (learned) token."""
    kept = jnp.arange(x.shape[1]) < count[:, None]
    return jnp.where(kept[..., None], x, token.astype(x.dtype))
