"""Float32 arithmetic that several ops share: the arg-max with a fixed tie rule, and the norm that survives zeros."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Floor(NamedTuple):
    """The least work of one call: floating-point operations (a multiply-add is two) and bytes of device memory."""

    flops: int
    bytes: int


TINY = float(jnp.finfo(jnp.float32).tiny)


#: Multiply-adds of one image from which XLA's matmul on a CPU is faster image by image than batched (a fifth at 577 x
#: 577 x 1024; below, the loop costs more than it saves).
LARGE_MATMUL = 1 << 27


def first_argmax(score: Float[Array, "*batch n"]) -> Int[Array, "*batch"]:
    """Index (int32) of the largest score along the last axis; the lowest index wins a tie, 0 where all are -inf.

    On a CPU `jnp.argmax` takes one element at a time while a maximum is vectorised, so this is two maxima: over the
    scores, then over the negated positions of those that reach it. float32 holds positions exactly to 2^24.
    """
    size = score.shape[-1]
    best = lax.optimization_barrier(score.max(-1, keepdims=True))
    position = -lax.broadcasted_iota(jnp.float32, score.shape, score.ndim - 1)
    first = -jnp.where(score == best, position, -jnp.inf).max(-1)
    return jnp.minimum(first, size - 1).astype(jnp.int32)


def inverse_norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """1 / ||x|| in float32; 0 for a row of zeros, with a zero gradient, so that it normalises to zeros."""
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), -1)
    positive = squares > TINY
    return jnp.where(positive, lax.rsqrt(jnp.where(positive, squares, 1.0)), 0.0)


def is_concrete(x: object) -> bool:
    """Whether the values of `x` can be read (it is not being traced).

    Look through `np.asarray`: inside a trace, `jnp` would make a tracer even of a known array.
    """
    return not isinstance(x, jax.core.Tracer)
