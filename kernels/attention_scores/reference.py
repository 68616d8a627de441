"""Softmax attention with the attention each key received, in plain jnp: the definition, and the path XLA compiles.

The work is cut into tiles of (images, key heads, query rows) whose scores fit a budget, and a loop walks over the tiles
and writes its results in place. On a CPU a tile of scores then stays in cache, which is what makes this as fast as a
fused kernel there; anywhere, it means that no N x M array exists beside one tile. The softmax and both matmuls are in
float32 whatever the dtype of the inputs. The backward pass recomputes a tile's probabilities from the log-sum-exp
("FlashAttention", arXiv 2205.14135).

Inside this folder the key bias is one float32 array [B, M], or None, in which NEGATIVE means "this key does not exist".
"""

import functools

import jax.numpy as jnp
from jax import lax

from jtok.kernels.attention_scores.tiles import CPU_BACKWARD, CPU_FORWARD, Budget, Tile, choose_tiles
from jtok.kernels.transforms import vary_as

NEGATIVE = -1e30  # stands for minus infinity: finite, so that rows without any key give zeros and never NaN


def attend(q, k, v, bias, weights, *, causal: bool, scale: float, budget: Budget = CPU_FORWARD):
    """Attention of q [B,N,H,D] over k, v [B,M,Hk,D]: out [B,N,H,D], lse [B,H,N] float32, and, where `weights` [B,N] is
    given (one per query row), the weighted sum over rows of the attention each key received: [B,H,M] float32."""
    (b, n, h, _), m = q.shape, k.shape[1]
    if n == 1:  # sees every key, causal or not
        return _attend_one(q, k, v, bias, weights, scale)
    dot, positions = _einsum(q.dtype), every_position(q, k) if causal else None

    def step(at: Tile, carry):
        out, lse, received = carry
        s = _scores(at, q, k, bias, positions, scale)
        peak = jnp.max(s, -1, keepdims=True)
        p = jnp.exp(s - jnp.where(peak > NEGATIVE / 2, peak, 0.0))
        total = jnp.sum(p, -1, keepdims=True)
        inverse = 1.0 / jnp.where(total > 0, total, 1.0)
        out = at.put_queries(out, dot("bgnm,bgmd->bgnd", p, at.keys(v)) * inverse)
        lse = at.put_rows(lse, jnp.where(total > 0, peak - jnp.log(inverse), NEGATIVE))
        if weights is not None:
            received = at.add_columns(received, _weighted_columns(at, p, inverse * at.weights(weights)))
        return out, lse, received

    received = None if weights is None else jnp.zeros((b, h, m), jnp.float32)
    start = jnp.zeros_like(q), jnp.zeros((b, h, n), jnp.float32), received
    return _tiles(q, k, budget).loop(step, vary_as(q, start))


def _attend_one(q, k, v, bias, weights, scale: float):
    """`attend` of a single query row, as in decoding: sums of products in the order in which keys and values lie, since
    a matmul would first transpose them (on a CPU at 704 keys and 32 heads 1.5 times slower, 3.7 with 8 key heads).

    The barriers keep XLA from recomputing scores and exponentials for every channel.
    """
    (b, _, h, d), (m, key_heads) = q.shape, k.shape[1:3]
    q, k, v, dtype = *(x.astype(jnp.float32) for x in (q, k, v)), q.dtype
    if key_heads < h:  # an axis for the queries that share a key head; where it has length one, it costs a lot
        q, k, v = q.reshape(b, 1, key_heads, -1, d), k[:, :, :, None], v[:, :, :, None]
    s = (q * k).sum(-1) * scale
    if bias is not None:
        s = s + bias.reshape(b, m, *[1] * (s.ndim - 2))
    s = lax.optimization_barrier(s)
    peak = jnp.max(s, 1, keepdims=True)
    p = lax.optimization_barrier(jnp.exp(s - jnp.where(peak > NEGATIVE / 2, peak, 0.0)))
    total = jnp.sum(p, 1)
    inverse = 1.0 / jnp.where(total > 0, total, 1.0)
    out = (p[..., None] * v).sum(1) * inverse[..., None]
    lse = jnp.where(total > 0, peak[:, 0] - jnp.log(inverse), NEGATIVE)
    received = None
    if weights is not None:
        received = jnp.moveaxis((p * inverse[:, None]).reshape(b, m, h), 1, 2) * weights.astype(jnp.float32)[..., None]
    return out.reshape(b, 1, h, d).astype(dtype), lse.reshape(b, h, 1), received


def attend_forward(
    q, k, v, bias, weights, out, lse, tangents, *, causal: bool, scale: float, budget: Budget = CPU_BACKWARD
):
    """Tangents of `attend`'s (out, lse, received), given those of (q, k, v, bias, weights)."""
    slope_q, slope_k, slope_v, slope_bias, slope_weights = tangents
    dot, positions = _einsum(q.dtype), every_position(q, k) if causal else None

    def step(at: Tile, carry):
        slope_out, slope_lse, slope_received = carry
        p = _probabilities(at, q, k, bias, positions, lse, scale)
        ds = _score_slopes(at, q, k, slope_q, slope_k, slope_bias, scale)
        mean = jnp.sum(p * ds, -1, keepdims=True)
        dp = p * (ds - mean)
        moved = dot("bgnm,bgmd->bgnd", dp, at.keys(v)) + dot("bgnm,bgmd->bgnd", p, at.keys(slope_v))
        slope_out = at.put_queries(slope_out, moved, add=True)
        slope_lse = at.put_rows(slope_lse, at.drop_stale(mean), add=True)
        if weights is not None:
            received = _weighted_columns(at, dp, at.weights(weights))
            received += _weighted_columns(at, p, at.weights(slope_weights))
            slope_received = at.add_columns(slope_received, received)
        return slope_out, slope_lse, slope_received

    received = None if weights is None else jnp.zeros((q.shape[0], q.shape[2], k.shape[1]), jnp.float32)
    start = jnp.zeros(out.shape, jnp.float32), jnp.zeros(lse.shape, jnp.float32), received
    moved, *others = _tiles(q, k, budget).loop(step, vary_as(q, start))
    return moved.astype(out.dtype), *others


def attend_backward(
    q, k, v, bias, weights, out, lse, grads, *, causal: bool, scale: float, budget: Budget = CPU_BACKWARD
):
    """Gradients of `attend` for (q, k, v, bias, weights), given `grads`, those of (out, lse, received)."""
    d_out, d_lse, d_received = grads
    dot, positions = _einsum(q.dtype), every_position(q, k) if causal else None

    def step(at: Tile, carry):
        dq, dk, dv, dbias, dweights = carry
        p = _probabilities(at, q, k, bias, positions, lse, scale)
        g = at.queries(d_out)
        dp = dot("bgnd,bgmd->bgnm", g, at.keys(v))
        delta = jnp.sum(g * at.queries(out), -1, keepdims=True) - at.rows(d_lse)
        if weights is not None:
            weight, column = at.weights(weights), at.columns(d_received)
            row_sums = _row_sums(at, p, column)
            dp = (at.split(dp) + at.split(weight) * column[..., None, :]).reshape(dp.shape)
            delta = delta + weight * row_sums
            dweights = at.add_weights(dweights, row_sums)
        ds = p * (dp - delta)
        dq, dk, dbias = _score_grads(at, ds, q, k, scale, dq, dk, dbias)
        dv = at.add_keys(dv, dot("bgnm,bgnd->bgmd", p, g))
        return dq, dk, dv, dbias, dweights

    return _summed_over_tiles(step, (q, k, v, bias, weights), _tiles(q, k, budget))


def column_sums(q, k, bias, positions, weights, lse, *, scale: float, budget: Budget = CPU_FORWARD):
    """What the keys [B,M] receive from the rows q [B,R,H,D] whose log-sum-exp [B,H,R] is known: the sum over rows of
    weights [B,R] times probability, [B,H,M] float32. A row sees keys up to its position [B,R]; all if that is None."""

    def step(at: Tile, received):
        p = _probabilities(at, q, k, bias, positions, lse, scale)
        return at.add_columns(received, _weighted_columns(at, p, at.weights(weights)))

    start = jnp.zeros((q.shape[0], q.shape[2], k.shape[1]), jnp.float32)
    return _tiles(q, k, budget).loop(step, vary_as(q, start))


def column_sums_forward(q, k, bias, positions, weights, lse, tangents, *, scale: float, budget: Budget = CPU_BACKWARD):
    """Tangent of `column_sums`, given those of (q, k, bias, weights, lse)."""
    slope_q, slope_k, slope_bias, slope_weights, slope_lse = tangents

    def step(at: Tile, received):
        p = _probabilities(at, q, k, bias, positions, lse, scale)
        ds = _score_slopes(at, q, k, slope_q, slope_k, slope_bias, scale) - at.rows(slope_lse)
        moved = _weighted_columns(at, p * ds, at.weights(weights)) + _weighted_columns(at, p, at.weights(slope_weights))
        return at.add_columns(received, moved)

    start = jnp.zeros((q.shape[0], q.shape[2], k.shape[1]), jnp.float32)
    return _tiles(q, k, budget).loop(step, vary_as(q, start))


def column_sums_backward(
    q, k, bias, positions, weights, lse, d_received, *, scale: float, budget: Budget = CPU_BACKWARD
):
    """Gradients of `column_sums` for (q, k, bias, weights, lse)."""

    def step(at: Tile, carry):
        dq, dk, dbias, dweights, dlse = carry
        p = _probabilities(at, q, k, bias, positions, lse, scale)
        weight, column = at.weights(weights), at.columns(d_received)
        row_sums = _row_sums(at, p, column)
        ds = (at.split(p * weight) * column[..., None, :]).reshape(p.shape)
        dq, dk, dbias = _score_grads(at, ds, q, k, scale, dq, dk, dbias)
        return dq, dk, dbias, at.add_weights(dweights, row_sums), at.put_rows(dlse, -weight * row_sums, add=True)

    return _summed_over_tiles(step, (q, k, bias, weights, lse), _tiles(q, k, budget))


def row_probabilities(q, k, bias, positions, *, scale: float):
    """Softmax probabilities [B,H,R,M] float32 of a few query rows q [B,R,H,D]; positions as in `column_sums`."""
    b, r, h, d = q.shape
    m, key_heads = k.shape[1:3]
    grouped = q.reshape(b, r, key_heads, h // key_heads, d)
    s = _einsum(q.dtype)("brgsd,bmgd->bgsrm", grouped, k) * scale
    if bias is not None:
        s = s + bias[:, None, None, None]
    if positions is not None:
        s = jnp.where((jnp.arange(m) <= positions[..., None])[:, None, None], s, NEGATIVE)
    peak = lax.stop_gradient(jnp.max(s, -1, keepdims=True))
    p = jnp.exp(s - jnp.where(peak > NEGATIVE / 2, peak, 0.0))
    total = jnp.sum(p, -1, keepdims=True)
    return (p / jnp.where(total > 0, total, 1.0)).reshape(b, h, r, m)


def every_position(q, k):
    """The last key each query row sees under a causal mask, [B,N]: the last row sees all."""
    (b, n), m = q.shape[:2], k.shape[1]
    return jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32) + (m - n), (b, n))


def _tiles(q, k, budget: Budget):
    (b, n, h, _), (m, key_heads) = q.shape, k.shape[1:3]
    return choose_tiles(b, n, m, key_heads, h // key_heads, budget)


def _einsum(dtype):
    """Matmuls with float32 results; float32 inputs are not rounded to the bfloat16 or TF32 of a fast path."""
    precision = lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT
    return functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)


def _scores(at: Tile, q, k, bias, positions, scale: float):
    """One tile of masked scores, [images, heads, share * rows, M] float32."""
    s = _einsum(q.dtype)("bgnd,bgmd->bgnm", at.queries(q) * scale, at.keys(k))
    if bias is not None:
        s = s + at.bias(bias)
    if positions is not None:
        s = jnp.where(jnp.arange(k.shape[1]) <= at.every_head(positions), s, NEGATIVE)
    return s


def _score_slopes(at: Tile, q, k, slope_q, slope_k, slope_bias, scale: float):
    """Tangents of one tile of scores; where a key does not exist they meet a probability of zero."""
    dot = _einsum(q.dtype)
    s = dot("bgnd,bgmd->bgnm", at.queries(slope_q) * scale, at.keys(k))
    s = s + dot("bgnd,bgmd->bgnm", at.queries(q) * scale, at.keys(slope_k))
    return s if slope_bias is None else s + at.bias(slope_bias)


def _probabilities(at: Tile, q, k, bias, positions, lse, scale: float):
    """One tile of the softmax, from the known log-sum-exp; zero in rows that an earlier tile did."""
    s = _scores(at, q, k, bias, positions, scale)
    return at.drop_stale(jnp.exp(s - jnp.maximum(at.rows(lse), NEGATIVE / 2)))


def _weighted_columns(at: Tile, p, weight):
    """The sum over rows of weight [.., rows, 1] times p, a query head: [images, heads, share, M]."""
    return jnp.einsum("bgsnm,bgsn->bgsm", at.split(p), at.split(weight)[..., 0])


def _row_sums(at: Tile, p, column):
    """The sum over keys of p times column [images, heads, share, M]: [images, heads, share * rows, 1]."""
    return jnp.einsum("bgsnm,bgsm->bgsn", at.split(p), column).reshape(*p.shape[:3], 1)


def _score_grads(at: Tile, ds, q, k, scale: float, dq, dk, dbias):
    """Add to (dq, dk, dbias) what a tile's gradient of the scores `ds` gives."""
    dot = _einsum(q.dtype)
    dq = at.put_queries(dq, dot("bgnm,bgmd->bgnd", ds, at.keys(k)) * scale, add=True)
    dk = at.add_keys(dk, dot("bgnm,bgnd->bgmd", ds, at.queries(q)) * scale)
    return dq, dk, None if dbias is None else at.add_bias(dbias, jnp.sum(ds, (1, 2)))


def _summed_over_tiles(step, inputs, tiles):
    """Gradients for `inputs` (None where an input is), summed in float32 and returned in each input's dtype."""
    start = tuple(None if x is None else jnp.zeros(x.shape, jnp.float32) for x in inputs)
    grads = tiles.loop(step, vary_as(inputs[0], start))
    return tuple(None if x is None else g.astype(x.dtype) for g, x in zip(grads, inputs, strict=True))
