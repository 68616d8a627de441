"""Choice of the next token: greedy, or sampled at a temperature from the nucleus."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.kernels.numerics import first_argmax


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the most likely token (ties: the lowest id). top_p: samples come from the smallest set of
    tokens whose probability reaches it (nucleus sampling, arXiv:1904.09751)."""

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise UserError(f"the temperature is {self.temperature}; it must be 0 (greedy) or above.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


def sample(logits: Float[Array, "B V"], keys: Array, sampling: Sampling) -> Int[Array, " B"]:
    """The next token of every row; `keys` [B] are one PRNG key per row, so that rows do not depend on their batch."""
    if sampling.temperature == 0:
        return first_argmax(logits)
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_p < 1:
        logits = jnp.where(_nucleus(jax.nn.softmax(logits, -1), sampling.top_p), logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _nucleus(p: Float[Array, "B V"], top_p: float) -> Array:
    """True for the fewest most likely tokens whose probabilities together reach `top_p` (ties: all or none)."""
    ordered = -jnp.sort(-p, -1)
    before = jnp.cumsum(ordered, -1) - ordered
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), -1, keepdims=True)
    return p >= least
