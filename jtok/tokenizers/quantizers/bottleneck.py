"""What every quantizer returns, and how gradients pass through it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """values: what the decoder reads, with the gradient of the straight-through rule. indices: int32, one a latent (a
    last axis where a latent has several). losses: unweighted terms and `total`, what a training step adds."""

    values: Float[Array, "*b d"]
    indices: Int[Array, "..."] | None
    losses: dict[str, Array] = dataclasses.field(default_factory=dict)


def straight_through(z: Float[Array, "*b d"], q: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """q forward, the identity in z backward."""
    return z + lax.stop_gradient(q - z)


def rotate(z: Float[Array, "*b d"], q: Float[Array, "*b d"], eps: float = 1e-6) -> Float[Array, "*b d"]:
    """q forward; backward, z is rotated and scaled onto q, so that the angle between gradient and z is preserved.

    The rotation trick, "Restructuring Vector Quantization with the Rotation Trick", arXiv:2410.06424.
    """
    stop = lax.stop_gradient
    z_norm = jnp.maximum(jnp.linalg.norm(stop(z), axis=-1, keepdims=True), eps)
    q_norm = jnp.maximum(jnp.linalg.norm(stop(q), axis=-1, keepdims=True), eps)
    u, v = stop(z) / z_norm, stop(q) / q_norm
    r = (u + v) / jnp.maximum(jnp.linalg.norm(u + v, axis=-1, keepdims=True), eps)
    along = (z * r).sum(-1, keepdims=True)
    rotated = z - 2 * along * r + 2 * (z * u).sum(-1, keepdims=True) * v
    return rotated * (q_norm / z_norm)


def entropy(p: Float[Array, "*b k"], *, floor: float = 0.0, eps: float = 0.0) -> Float[Array, "*b"]:
    """-sum p log(max(p, floor) + eps), in nats."""
    return -(p * jnp.log(jnp.maximum(p, floor) + eps)).sum(-1)


def bits_to_index(bits: Array) -> Int[Array, "*b"]:
    """The number whose binary digits are the last axis, the first the most significant; int32, up to 31 bits."""
    weights = 1 << jnp.arange(bits.shape[-1] - 1, -1, -1, dtype=jnp.int32)
    return (bits.astype(jnp.int32) * weights).sum(-1)


def index_to_bits(index: Int[Array, "*b"], count: int) -> Int[Array, "*b d"]:
    """Inverse of `bits_to_index`: 0 or 1, int32."""
    return (index[..., None] >> jnp.arange(count - 1, -1, -1, dtype=jnp.int32)) & 1
