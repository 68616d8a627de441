"""Flash attention on TPU with the log-sum-exp and, from it, the attention that each key received.

Where all keys fit one block (up to 2048) a block of scores is a whole row: the softmax is direct, and the column sums
leave in the same pass. Beyond, the softmax is online over blocks of keys, and a second pass, which recomputes q k^T and
touches neither v nor `out`, sums exp(score - lse) over the scored rows only.

Heads go before tokens ([B,H,N,D]) and tokens are padded to whole blocks outside the kernel, where XLA does both in one
copy. Scores are kept in base 2: exp2 is what the hardware has.
"""

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jtok.kernels.attention_scores.reference import NEGATIVE, every_position
from jtok.kernels.attention_scores.shapes import Shape, floor
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

LANES, SUBLANES = 128, 16
LOG2E = math.log2(math.e)


class Blocks(NamedTuple):
    """Most scores in a block, most query rows, most keys, and the bytes of VMEM the kernel may take."""

    scores: int
    rows: int
    keys: int
    vmem: int


BLOCKS = {
    "v4": Blocks(2**18, 512, 1024, 15 * 2**20),
    "v5e": Blocks(2**20, 1024, 2048, 96 * 2**20),
    "v5p": Blocks(2**20, 1024, 2048, 48 * 2**20),
    "v6e": Blocks(2**20, 1024, 2048, 96 * 2**20),
}
FEW_QUERIES = 64
MAX_WIDTH = 1024  # beyond, blocks of a useful size leave VMEM


def takes(q: Any, forced: bool) -> bool:
    """Whether the kernel can run on queries q [B,N,H,D], and, unless `forced`, whether it beats XLA there: for a few
    queries (decoding), putting heads before tokens would copy the whole cache."""
    return q.shape[-1] <= MAX_WIDTH and (forced or q.shape[1] >= FEW_QUERIES)


def attend(q, k, v, bias, weights, *, causal: bool, scale: float, interpret: Any = False):
    """As `reference.attend`."""
    dtype = q.dtype
    (b, n, h, d), m = q.shape, k.shape[1]
    rows, keys, vmem = _blocks(n, m, d)
    if weights is not None and keys < m:
        positions = every_position(q, k) if causal else None
        out, lse, _ = attend(q, k, v, bias, None, causal=causal, scale=scale, interpret=interpret)
        sums = column_sums(q, k, bias, positions, weights, lse, scale=scale, interpret=interpret)
        return out, lse, sums
    cost = floor(Shape(b, n, m, h, k.shape[2], d, causal, None if weights is None else "all"), itemsize=dtype.itemsize)
    q, k, v = (_heads_first(x, block) for x, block in ((q, rows), (k, keys), (v, keys)))
    grid = b, h, q.shape[2] // rows, k.shape[2] // keys
    share = h // k.shape[1]
    whole, summed = grid[3] == 1, weights is not None
    arrays = [q, k, v, _key_row(bias, b, m, k.shape[2])]
    in_specs = [
        pl.BlockSpec((1, 1, rows, d), lambda b, h, i, j: (b, h, i, 0)),
        pl.BlockSpec((1, 1, keys, d), lambda b, h, i, j: (b, h // share, j, 0)),
        pl.BlockSpec((1, 1, keys, d), lambda b, h, i, j: (b, h // share, j, 0)),
        pl.BlockSpec((1, 1, keys), lambda b, h, i, j: (b, 0, j)),
    ]
    out_specs = [
        pl.BlockSpec((1, 1, rows, d), lambda b, h, i, j: (b, h, i, 0)),
        pl.BlockSpec((1, 1, 1, rows), lambda b, h, i, j: (b, h, 0, i)),
    ]
    out_shape = [
        result(q.shape, q.dtype, q),
        result((b, h, 1, q.shape[2]), jnp.float32, q),
    ]
    if summed:
        arrays.append(_row(weights, q.shape[2])[:, None])
        in_specs.append(pl.BlockSpec((1, 1, rows), lambda b, h, i, j: (b, 0, i)))
        out_specs.append(pl.BlockSpec((1, 1, 1, keys), lambda b, h, i, j: (b, h, 0, 0)))
        out_shape.append(result((b, h, 1, keys), jnp.float32, q))
    static = {"scale": scale * LOG2E, "offset": m - n if causal else None}
    scratch = [pltpu.VMEM((rows, width), jnp.float32) for width in (1, 1, d)]
    out, lse, *received = pl.pallas_call(
        functools.partial(_whole_rows, summed=summed, **static) if whole else functools.partial(_online, **static),
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[] if whole else scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary" if summed else "parallel", "arbitrary"),
            vmem_limit_bytes=vmem,
        ),
        cost_estimate=pl.CostEstimate(flops=cost.flops, bytes_accessed=cost.bytes, transcendentals=b * h * n * m),
        interpret=interpret,
        name="attention_scores",
    )(*arrays)
    out, lse = out[:, :, :n].swapaxes(1, 2).astype(dtype), lse[:, :, 0, :n]
    return out, lse, received[0][:, :, 0, :m] if summed else None


def _whole_rows(q, k, v, bias, *refs, scale: float, offset: int | None, summed: bool):
    """A block of query rows against all keys."""
    out, lse = refs[-3:-1] if summed else refs
    s = _scores(q, k, bias, scale, _positions(q, offset), 0)
    top = jnp.max(s, -1, keepdims=True)
    p = jnp.exp2(s - jnp.where(top > NEGATIVE / 2, top, 0.0))
    total = jnp.sum(p, -1, keepdims=True)
    inverse = 1.0 / jnp.where(total > 0, total, 1.0)
    out[0, 0] = (_dot(p.astype(v.dtype), v[0, 0], 0) * inverse).astype(out.dtype)
    lse[0, 0] = _log_sum(top, total).T
    if summed:
        weights, received = refs[0], refs[-1]

        @pl.when(pl.program_id(2) == 0)
        def _():
            received[...] = jnp.zeros(received.shape, jnp.float32)

        received[0, 0] += jnp.sum(p * (inverse * weights[0].T), 0, keepdims=True)


def _online(q, k, v, bias, out, lse, top, total, acc, *, scale: float, offset: int | None):
    """A block of query rows against the key blocks in turn, rescaling the running values in scratch."""
    j = pl.program_id(3)
    rows, keys = q.shape[2], k.shape[2]

    @pl.when(j == 0)
    def _():
        top[...] = jnp.full(top.shape, NEGATIVE)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    def step():
        s = _scores(q, k, bias, scale, _positions(q, offset), j * keys)
        old = top[...]
        new = jnp.maximum(old, jnp.max(s, -1, keepdims=True))
        shift = jnp.where(new > NEGATIVE / 2, new, 0.0)
        p = jnp.exp2(s - shift)
        shrink = jnp.exp2(old - shift)
        top[...] = new
        total[...] = total[...] * shrink + jnp.sum(p, -1, keepdims=True)
        acc[...] = acc[...] * shrink + _dot(p.astype(v.dtype), v[0, 0], 0)

    if offset is None:
        step()
    else:  # blocks beyond the last row's last key have nothing to see
        pl.when(j * keys <= (pl.program_id(2) + 1) * rows - 1 + offset)(step)

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        out[0, 0] = (acc[...] / jnp.where(total[...] > 0, total[...], 1.0)).astype(out.dtype)
        lse[0, 0] = _log_sum(top[...], total[...]).T


def column_sums(q, k, bias, positions, weights, lse, *, scale: float, interpret: Any = False):
    """As `reference.column_sums`."""
    (b, n, h, d), m = q.shape, k.shape[1]
    rows, keys, vmem = _blocks(n, m, d)
    cost = pl.CostEstimate(
        flops=2 * b * h * n * m * d,
        bytes_accessed=b * (n * h + m * k.shape[2]) * d * q.dtype.itemsize,
        transcendentals=b * h * n * m,
    )
    q, k = _heads_first(q, rows), _heads_first(k, keys)
    share = h // k.shape[1]
    length = q.shape[2]
    arrays = [
        q,
        k,
        _key_row(bias, b, m, k.shape[2]),
        _row(weights, length)[:, None],
        _row(lse, length, -NEGATIVE)[:, :, None],
    ]
    row_spec = pl.BlockSpec((1, 1, rows), lambda b, h, j, i: (b, 0, i))
    in_specs = [
        pl.BlockSpec((1, 1, rows, d), lambda b, h, j, i: (b, h, i, 0)),
        pl.BlockSpec((1, 1, keys, d), lambda b, h, j, i: (b, h // share, j, 0)),
        pl.BlockSpec((1, 1, keys), lambda b, h, j, i: (b, 0, j)),
        row_spec,
        pl.BlockSpec((1, 1, 1, rows), lambda b, h, j, i: (b, h, 0, i)),
    ]
    if positions is not None:
        arrays.append(_row(positions, length)[:, None])
        in_specs.append(row_spec)
    received = pl.pallas_call(
        functools.partial(_sum_columns, scale=scale * LOG2E, causal=positions is not None),
        grid=(b, h, k.shape[2] // keys, length // rows),
        in_specs=in_specs,
        out_specs=pl.BlockSpec((1, 1, 1, keys), lambda b, h, j, i: (b, h, 0, j)),
        out_shape=result((b, h, 1, k.shape[2]), jnp.float32, q),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"), vmem_limit_bytes=vmem
        ),
        cost_estimate=cost,
        interpret=interpret,
        name="attention_column_sums",
    )(*arrays)
    return received[:, :, 0, :m]


def _sum_columns(q, k, bias, weights, lse, *refs, scale: float, causal: bool):
    """One block of keys; the blocks of query rows pass by and add what they give."""
    received = refs[-1]

    @pl.when(pl.program_id(3) == 0)
    def _():
        received[...] = jnp.zeros(received.shape, jnp.float32)

    s = _scores(q, k, bias, scale, refs[0][0].T if causal else None, pl.program_id(2) * k.shape[2])
    p = jnp.exp2(s - jnp.maximum(lse[0, 0] * LOG2E, NEGATIVE / 2).T)
    received[0, 0] += jnp.sum(p * weights[0].T, 0, keepdims=True)


def _scores(q, k, bias, scale: float, positions, first_key):
    """Base-2 scores [rows, keys]; key m exists for a row whose position is at least m."""
    s = _dot(q[0, 0], k[0, 0], 1) * scale + bias[0]
    if positions is None:
        return s
    return jnp.where(first_key + lax.broadcasted_iota(jnp.int32, s.shape, 1) <= positions, s, NEGATIVE)


def _positions(q, offset: int | None):
    if offset is None:
        return None
    rows = q.shape[2]
    return pl.program_id(2) * rows + offset + lax.broadcasted_iota(jnp.int32, (rows, 1), 0)


def _dot(a, b, contract: int):
    """Matmul of a's columns with b's rows (0) or columns (1), float32 sums; float32 inputs are not rounded."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(a, b, (((1,), (contract,)), ((), ())), precision, jnp.float32)


def _log_sum(top, total):
    return jnp.where(total > 0, (top + jnp.log2(jnp.where(total > 0, total, 1.0))) / LOG2E, NEGATIVE)


def _blocks(n: int, m: int, d: int) -> tuple[int, int, int]:
    """Query rows and keys in a block, and bytes of VMEM: the chip's, as few padded tokens as the limits allow."""
    limit = block_sizes(BLOCKS, "v4")  # the smallest VMEM: fits a chip without a row
    wide = pl.cdiv(d, 256)  # wider heads leave space for fewer tokens
    keys = _split(m, max(limit.keys // wide, LANES), LANES)
    rows = _split(n, max(min(limit.rows // wide, limit.scores // keys), LANES), SUBLANES)
    return rows, keys, limit.vmem


def _split(length: int, limit: int, unit: int) -> int:
    """One block where `limit` allows it, else whole lanes of it that waste the least; of equals the largest."""
    if pl.cdiv(length, unit) * unit <= limit:
        return pl.cdiv(length, unit) * unit
    sizes = range(max(LANES, limit // 2 // LANES * LANES), limit + 1, LANES)
    return min(sizes, key=lambda size: (pl.cdiv(length, size) * size, -size))


def _heads_first(x, block: int):
    """x [B,N,H,D] as [B,H,N',D], zeros up to whole blocks; float16, which the vector units lack, as float32."""
    x = x.astype(jnp.float32) if x.dtype == jnp.float16 else x
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % block), (0, 0)))


def _row(x, length: int, value: float = 0):
    """x [..., R] with `value` up to `length`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])], constant_values=value)


def _key_row(bias, b: int, m: int, length: int):
    """The key bias in base 2, [B,1,length]; padding does not exist."""
    bias = jnp.zeros((b, m), jnp.float32) if bias is None else jnp.maximum(bias * LOG2E, NEGATIVE)
    return jnp.pad(bias, ((0, 0), (0, length - m)), constant_values=NEGATIVE)[:, None]
