"""Flash attention on a GPU (Triton) with the log-sum-exp and, from it, the attention that each key received.

Forward: a program holds a block of query rows and walks over the keys, with an online softmax. Column sums: a second
kernel, in which a program holds a block of keys and walks over the scored rows, whose log-sum-exp is known by then; it
recomputes q k^T, touches neither v nor `out`, and needs no atomics, so that results repeat bit for bit.

Arrays are read where they lie ([B,N,H,D], no transposed or padded copies); masks cut the edges.
"""

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jtok.kernels.attention_scores.reference import NEGATIVE, every_position
from jtok.kernels.attention_scores.shapes import Shape, floor
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

LOG2E = math.log2(math.e)
MAX_WIDTH = 256  # a block of wider heads leaves registers


class Blocks(NamedTuple):
    """Rows of the block a program holds, rows of those it walks over, warps and pipeline stages."""

    held: int
    walked: int
    warps: int
    stages: int


# For heads of up to 64 two-byte numbers. Each doubling of a row's bytes halves what is walked over, each after the
# first also what is held.
BLOCKS = {"ampere": Blocks(128, 64, 4, 3), "hopper": Blocks(128, 128, 8, 2), "blackwell": Blocks(128, 128, 8, 2)}


def takes(q: Any, forced: bool) -> bool:
    """Whether the kernel can run on queries q [B,N,H,D]; it does as well forced as not."""
    del forced
    return q.shape[-1] <= MAX_WIDTH


def attend(q, k, v, bias, weights, *, causal: bool, scale: float, interpret: bool = False):
    """As `reference.attend`."""
    (b, n, h, d), (m, key_heads) = q.shape, k.shape[1:3]
    rows, keys, warps, stages = _blocks(n, m, q)
    cost = floor(Shape(b, n, m, h, key_heads, d, causal, None), itemsize=q.dtype.itemsize)
    kernel = functools.partial(
        _attend, bias=bias is not None, rows=rows, keys=keys, offset=m - n if causal else None, scale=scale * LOG2E
    )
    out, lse = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n, rows), h, b),
        out_shape=[result(q.shape, q.dtype, q), result((b, h, n), jnp.float32, q)],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        cost_estimate=pl.CostEstimate(flops=cost.flops, bytes_accessed=cost.bytes, transcendentals=b * h * n * m),
        interpret=interpret,
        name="attention_scores",
    )(q, k, v, *([] if bias is None else [bias]))
    if weights is None:
        return out, lse, None
    positions = every_position(q, k) if causal else None
    return out, lse, column_sums(q, k, bias, positions, weights, lse, scale=scale, interpret=interpret)


def _attend(q, k, v, *refs, bias: bool, rows: int, keys: int, offset: int | None, scale: float):
    out, lse = refs[-2:]
    (_, n, h, d), (m, key_heads) = q.shape, k.shape[1:3]
    width = _width(d)
    head, image = pl.program_id(1), pl.program_id(2)
    key_head = head // (h // key_heads)
    row = pl.program_id(0) * rows + jnp.arange(rows)
    query = _load(q, image, pl.program_id(0) * rows, head, rows, width)

    def step(j, carry):
        acc, top, total = carry
        s = _dot(query, _load(k, image, j * keys, key_head, keys, width).T) * scale
        key = j * keys + jnp.arange(keys)
        if bias:
            s += _load_row(refs[0].at[image, pl.ds(j * keys, keys)], key < m, NEGATIVE) * LOG2E
        visible = (key < m)[None] if offset is None else (key < m)[None] & (key[None] <= row[:, None] + offset)
        s = jnp.where(visible, s, NEGATIVE)
        new = jnp.maximum(top, jnp.max(s, 1))
        shift = jnp.where(new > NEGATIVE / 2, new, 0.0)
        p = jnp.exp2(s - shift[:, None])
        shrink = jnp.exp2(top - shift)
        value = _load(v, image, j * keys, key_head, keys, width)
        return acc * shrink[:, None] + _dot(p.astype(v.dtype), value), new, total * shrink + jnp.sum(p, 1)

    steps = pl.cdiv(m, keys)
    if offset is not None:  # keys beyond the last row's last one have nothing to give
        steps = jnp.clip(pl.cdiv((pl.program_id(0) + 1) * rows + offset, keys), 0, steps)
    start = jnp.zeros((rows, width), jnp.float32), jnp.full((rows,), NEGATIVE), jnp.zeros((rows,), jnp.float32)
    acc, top, total = lax.fori_loop(0, steps, step, start)
    divisor = jnp.where(total > 0, total, 1.0)
    inside = (row < n)[:, None] & (jnp.arange(width) < d)[None]
    here = pl.ds(pl.program_id(0) * rows, rows)
    triton.store(out.at[image, here, head, pl.ds(0, width)], (acc / divisor[:, None]).astype(out.dtype), mask=inside)
    log_sum = jnp.where(total > 0, (top + jnp.log2(divisor)) / LOG2E, NEGATIVE)
    triton.store(lse.at[image, head, here], log_sum, mask=row < n)


def column_sums(q, k, bias, positions, weights, lse, *, scale: float, interpret: bool = False):
    """As `reference.column_sums`."""
    (b, r, h, d), (m, key_heads) = q.shape, k.shape[1:3]
    keys, rows, warps, stages = _blocks(m, r, q)
    optional = [x for x in (bias, positions) if x is not None]
    kernel = functools.partial(
        _sum_columns, bias=bias is not None, causal=positions is not None, rows=rows, keys=keys, scale=scale * LOG2E
    )
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(m, keys), h, b),
        out_shape=result((b, h, m), jnp.float32, q),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        cost_estimate=pl.CostEstimate(
            flops=2 * b * h * r * m * d,
            bytes_accessed=b * (r * h + m * key_heads) * d * q.dtype.itemsize,
            transcendentals=b * h * r * m,
        ),
        interpret=interpret,
        name="attention_column_sums",
    )(q, k, weights, lse, *optional)


def _sum_columns(q, k, weights, lse, *refs, bias: bool, causal: bool, rows: int, keys: int, scale: float):
    received = refs[-1]
    (_, n, h, d), (m, key_heads) = q.shape, k.shape[1:3]
    width = _width(d)
    head, image = pl.program_id(1), pl.program_id(2)
    key = pl.program_id(0) * keys + jnp.arange(keys)
    here = pl.ds(pl.program_id(0) * keys, keys)
    block = _load(k, image, pl.program_id(0) * keys, head // (h // key_heads), keys, width)
    shift = _load_row(refs[0].at[image, here], key < m, NEGATIVE) * LOG2E if bias else None

    def step(i, total):
        inside = i * rows + jnp.arange(rows) < n
        row_slice = pl.ds(i * rows, rows)
        s = _dot(_load(q, image, i * rows, head, rows, width), block.T) * scale
        if bias:
            s += shift[None]
        if causal:
            last = _load_row(refs[-2].at[image, row_slice], inside, -1)
            s = jnp.where(key[None] <= last[:, None], s, NEGATIVE)
        log_sum = jnp.maximum(_load_row(lse.at[image, head, row_slice], inside, -NEGATIVE) * LOG2E, NEGATIVE / 2)
        weight = _load_row(weights.at[image, row_slice], inside, 0.0)
        return total + jnp.sum(jnp.exp2(s - log_sum[:, None]) * weight[:, None], 0)

    total = lax.fori_loop(0, pl.cdiv(n, rows), step, jnp.zeros((keys,), jnp.float32))
    triton.store(received.at[image, head, here], total, mask=key < m)


def _load(x, image, start, head, rows: int, width: int):
    """Rows from `start` of one head of x [B,N,H,D], zeros beyond the edges."""
    inside = (start + jnp.arange(rows) < x.shape[1])[:, None] & (jnp.arange(width) < x.shape[3])[None]
    return triton.load(x.at[image, pl.ds(start, rows), head, pl.ds(0, width)], mask=inside, other=0.0)


def _load_row(ref, inside, other):
    return triton.load(ref, mask=inside, other=other)


def _dot(a, b):
    """Matmul with float32 sums; float32 inputs are not rounded to TF32."""
    return triton.dot(a, b, precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


def _width(d: int) -> int:
    return max(16, pl.next_power_of_2(d))


def _blocks(held: int, walked: int, q) -> Blocks:
    """The chip's blocks, made smaller for wide heads and for short inputs."""
    limit = block_sizes(BLOCKS, "ampere")
    wide = max(1, _width(q.shape[-1]) * q.dtype.itemsize // 128)
    sizes = (limit.held // max(1, wide // 2), held), (limit.walked // wide, walked)
    return Blocks(*(max(16, min(size, pl.next_power_of_2(have))) for size, have in sizes), limit.warps, limit.stages)
