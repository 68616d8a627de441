"""Softmax attention with the attention each key received, in plain jnp: the definition, and the path XLA compiles.

The work is cut into tiles of (images, key heads, query rows) whose scores fit a budget, and a loop walks over the tiles
and writes its results in place. On a CPU a tile of scores then stays in cache, which is what makes this as fast as a
fused kernel there; anywhere, it means that no N x M array exists beside one tile. The softmax and both matmuls are in
float32 whatever the dtype of the inputs. The backward pass recomputes a tile's probabilities from the log-sum-exp
("FlashAttention", arXiv 2205.14135).

Inside this folder the key bias is one float32 array [B, M], or None, in which NEGATIVE means "this key does not exist".
"""

import jax.numpy as jnp
from jax import lax

from jtok.kernels.attention_scores.tiles import CPU_BACKWARD, CPU_FORWARD, Budget, Tile, choose_tiles

NEGATIVE = -1e30  # stands for minus infinity: finite, so that rows without any key give zeros and never NaN


def attend(q, k, v, bias, weights, *, causal: bool, scale: float, budget: Budget = CPU_FORWARD):
    """Attention of q [B,N,H,D] over k, v [B,M,Hk,D]: out [B,N,H,D], lse [B,H,N] float32, and, where `weights` [B,N] is
    given (one per query row), the weighted sum over rows of the attention each key received: [B,H,M] float32."""
    (b, n, h, _), (m, key_heads) = q.shape, k.shape[1:3]

    def step(at: Tile, carry):
        out, lse, received = carry
        s = _scores(at, q, k, bias, causal, scale)
        peak = jnp.max(s, -1, keepdims=True)
        p = jnp.exp(s - jnp.where(peak > NEGATIVE / 2, peak, 0.0))
        total = jnp.sum(p, -1, keepdims=True)
        inverse = 1.0 / jnp.where(total > 0, total, 1.0)
        out = at.put_queries(out, jnp.einsum("bgnm,bgmd->bgnd", p, at.keys(v)) * inverse)
        lse = at.put_rows(lse, jnp.where(total > 0, peak - jnp.log(inverse), NEGATIVE))
        if weights is not None:
            weight = at.split(inverse * at.weights(weights))[..., 0]
            received = at.add_columns(received, jnp.einsum("bgsn,bgsnm->bgsm", weight, at.split(p)))
        return out, lse, received

    received = None if weights is None else jnp.zeros((b, h, m), jnp.float32)
    start = jnp.zeros_like(q), jnp.zeros((b, h, n), jnp.float32), received
    return choose_tiles(b, n, m, key_heads, h // key_heads, budget).loop(step, start)


def attend_backward(
    q, k, v, bias, weights, out, lse, grads, *, causal: bool, scale: float, budget: Budget = CPU_BACKWARD
):
    """Gradients of `attend` for (q, k, v, bias, weights), given `grads`, those of (out, lse, received)."""
    d_out, d_lse, d_received = grads
    (b, n, h, _), (m, key_heads) = q.shape, k.shape[1:3]

    def step(at: Tile, carry):
        dq, dk, dv, dbias, dweights = carry
        s = _scores(at, q, k, bias, causal, scale)
        p = at.drop_stale(jnp.exp(s - jnp.maximum(at.rows(lse), NEGATIVE / 2)))
        g = at.queries(d_out)
        dp = jnp.einsum("bgnd,bgmd->bgnm", g, at.keys(v))
        delta = jnp.sum(g * at.queries(out), -1, keepdims=True) - at.rows(d_lse)
        if weights is not None:
            weight, column = at.weights(weights), at.columns(d_received)
            seen = jnp.einsum("bgsnm,bgsm->bgsn", at.split(p), column).reshape(delta.shape)  # what a weight multiplied
            dp = (at.split(dp) + at.split(weight) * column[..., None, :]).reshape(dp.shape)
            delta = delta + weight * seen
            dweights = at.add_weights(dweights, seen)
        ds = p * (dp - delta)
        dq = at.put_queries(dq, jnp.einsum("bgnm,bgmd->bgnd", ds, at.keys(k)) * scale, add=True)
        dk = at.add_keys(dk, jnp.einsum("bgnm,bgnd->bgmd", ds, at.queries(q)) * scale)
        dv = at.add_keys(dv, jnp.einsum("bgnm,bgnd->bgmd", p, g))
        if bias is not None:
            dbias = at.add_bias(dbias, jnp.sum(ds, (1, 2)))
        return dq, dk, dv, dbias, dweights

    inputs = q, k, v, bias, weights
    start = tuple(None if x is None else jnp.zeros(x.shape, jnp.float32) for x in inputs)
    found = choose_tiles(b, n, m, key_heads, h // key_heads, budget).loop(step, start)
    return tuple(None if g is None else g.astype(x.dtype) for g, x in zip(found, inputs, strict=True))


def row_probabilities(q, k, bias, positions, *, causal: bool, scale: float):
    """Softmax probabilities [B,H,R,M] float32 of a few query rows q [B,R,H,D]; under `causal` the row at `positions`
    [B,R] sees keys up to that number."""
    b, r, h, d = q.shape
    m, key_heads = k.shape[1:3]
    q = (q.astype(jnp.float32) * scale).reshape(b, r, key_heads, h // key_heads, d)
    s = jnp.einsum("brgsd,bmgd->bgsrm", q, k.astype(jnp.float32))
    if bias is not None:
        s = s + bias[:, None, None, None]
    if causal:
        s = jnp.where((jnp.arange(m) <= positions[..., None])[:, None, None], s, NEGATIVE)
    peak = lax.stop_gradient(jnp.max(s, -1, keepdims=True))
    p = jnp.exp(s - jnp.where(peak > NEGATIVE / 2, peak, 0.0))
    total = jnp.sum(p, -1, keepdims=True)
    return (p / jnp.where(total > 0, total, 1.0)).reshape(b, h, r, m)


def _scores(at: Tile, q, k, bias, causal: bool, scale: float):
    """One tile of masked scores, [images, heads, share * rows, M] float32."""
    s = jnp.einsum("bgnd,bgmd->bgnm", at.queries(q) * scale, at.keys(k))
    if bias is not None:
        s = s + at.bias(bias)
    if causal:
        m, n = k.shape[1], q.shape[1]
        s = jnp.where(jnp.arange(m) <= at.positions()[:, None] + (m - n), s, NEGATIVE)
    return s
