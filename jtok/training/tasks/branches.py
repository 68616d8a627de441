"""Several texts after one prefix, masked from each other: how a decoder trains on many questions about an image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.models.decoder.decoder import Decoder, Layer


class Prefix(NamedTuple):
    """What all branches follow: P tokens, and the position of what comes next."""

    x: Float[Array, "B P D"]
    position: Int[Array, "B P"]
    valid: Bool[Array, "B P"]
    next: Int[Array, " B"] | int


def branch(decoder: Decoder, prefix: Prefix, branches: Float[Array, "B Q T D"]) -> Float[Array, "B Q T D"]:
    """Outputs of a decoder's last layer for Q texts that each follow the same prefix.

    The same as running Q sequences, at the cost of one prefix. Texts are right-padded.
    """
    b, q, t, d = branches.shape
    p = prefix.x.shape[1]
    after = jnp.broadcast_to(jnp.reshape(prefix.next, (-1, 1, 1)) + jnp.arange(t), (b, q, t)).reshape(b, q * t)
    rope = decoder.rope(jnp.concatenate([prefix.position, after], 1)[..., None])
    mask = prefix.valid[:, None, None]  # [B,1,1,P]

    def body(layer: Layer, x: Array) -> tuple[Array, None]:
        queries, keys, values = layer.project(x, rope)
        own = [a[:, p:].reshape(b, q, t, *a.shape[2:]) for a in (queries, keys, values)]
        first = jax.nn.dot_product_attention(queries[:, :p], keys[:, :p], values[:, :p], mask=mask, is_causal=True)
        rest = _branch_attention(*own, keys[:, :p], values[:, :p], mask).reshape(b, q * t, *first.shape[2:])
        return layer.finish(x, jnp.concatenate([first, rest], 1)), None

    x = jnp.concatenate([prefix.x, branches.reshape(b, q * t, d)], 1)
    x, _ = decoder.layers.scan(body, x, 0, decoder.config.depth)
    return x[:, p:].reshape(b, q, t, d)


def _branch_attention(q, k, v, prefix_k, prefix_v, valid) -> Float[Array, "B Q T H Dh"]:
    """Attention of each branch to the prefix, where `valid`, and, causally, to itself."""
    scale, t = q.shape[-1] ** -0.5, q.shape[2]
    lowest = jnp.finfo(q.dtype).min
    to_prefix = jnp.einsum("bqthd,bphd->bqhtp", q, prefix_k)
    to_prefix = jnp.where(valid[:, None], to_prefix, lowest)
    to_own = jnp.einsum("bqthd,bqshd->bqhts", q, k)
    to_own = jnp.where(jnp.tril(jnp.ones((t, t), bool)), to_own, lowest)
    weights = jax.nn.softmax(scale * jnp.concatenate([to_prefix, to_own], -1).astype(jnp.float32), -1).astype(v.dtype)
    first, own = jnp.split(weights, [prefix_k.shape[1]], -1)
    return jnp.einsum("bqhtp,bphd->bqthd", first, prefix_v) + jnp.einsum("bqhts,bqshd->bqthd", own, v)
