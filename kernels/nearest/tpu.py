"""`nearest` on TPU: matmul and running arg-max over blocks of candidates, one pass, no scores in device memory."""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from jtok.kernels.nearest.shapes import Shape, floor
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

LANES = 128
MAX_K = LANES  # the running best matches of a row fit in one vector register
NO_INDEX = float(2**24)  # beyond every column: float32 holds positions exactly up to here

# Rows of `a` and of `b` in a block, and the bytes that the two may take (each is held twice, for the next transfer).
BLOCKS = {
    "v4": (256, 512, 4 * 2**20),
    "v5e": (256, 512, 8 * 2**20),
    "v5p": (256, 1024, 8 * 2**20),
    "v6e": (512, 1024, 16 * 2**20),
}


def takes(a: Float[Array, "g n d"], b: Float[Array, "h m d"], k: int) -> bool:
    """Whether the kernel can run: few enough matches per row, and the smallest blocks fit."""
    return k <= MAX_K and b.shape[1] < NO_INDEX and a.shape[2] <= 8192


def blocks(n: int, m: int, d: int, itemsize: int) -> tuple[int, int]:
    """Rows of `a` and `b` in a block: the chip's, halved until they fit, never more rows than the arrays have."""
    rows, columns, budget = block_sizes(BLOCKS, "v5e")
    rows, columns = min(rows, pl.align_to(n, 32)), min(columns, pl.align_to(m, LANES))
    width = pl.align_to(d, LANES) * itemsize
    while (rows + columns) * width > budget and (rows > 32 or columns > LANES):
        rows = max(32, rows // 2 // 32 * 32)
        columns = max(LANES, columns // 2 // LANES * LANES)
    return rows, columns


def search(
    a: Float[Array, "g n d"],
    b: Float[Array, "h m d"],
    scale: Float[Array, "g m"],
    offset: Float[Array, "g m"],
    mask: Bool[Array, "g n m"] | None,
    *,
    k: int = 1,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Float[Array, "g n k"], Int[Array, "g n k"]]:
    """As `reference.search`."""
    if a.dtype == jnp.float16:  # no float16 in the vector units
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    (g, n, d), (h, m, _) = a.shape, b.shape
    rows, columns = blocks(n, m, d, a.dtype.itemsize)
    cost = floor(Shape(g, n, m, d, "dot", k, shared=h == 1), itemsize=a.dtype.itemsize)
    a = _at_least(a, 1, rows)
    b = _at_least(b, 1, columns)
    scale, offset = (_at_least(x, 1, columns)[:, None] for x in (scale, offset))
    per_column = pl.BlockSpec((1, 1, columns), lambda i, r, c: (i if scale.shape[0] > 1 else 0, 0, c))
    in_specs = [
        pl.BlockSpec((1, rows, d), lambda i, r, c: (i, r, 0)),
        pl.BlockSpec((1, columns, d), lambda i, r, c: (i if h > 1 else 0, c, 0)),
        per_column,
        per_column,
    ]
    arrays = [a, b, scale, offset]
    if mask is not None:
        arrays.append(_at_least(_at_least(mask, 1, rows), 2, columns).astype(jnp.int8))
        in_specs.append(pl.BlockSpec((1, rows, columns), lambda i, r, c: (i, r, c)))
    out = pl.BlockSpec((1, rows, k), lambda i, r, c: (i, r, 0))
    kept = LANES  # k = 1: the best of every lane; k > 1: the k best, in the first lanes
    score, index = pl.pallas_call(
        lambda *refs: _kernel(*refs[:4], refs[4] if mask is not None else None, *refs[-4:], m=m, k=k),
        grid=(g, pl.cdiv(a.shape[1], rows), pl.cdiv(b.shape[1], columns)),
        in_specs=in_specs,
        out_specs=[out, out],
        out_shape=[
            result((g, a.shape[1], k), jnp.float32, a),
            result((g, a.shape[1], k), jnp.int32, a),
        ],
        scratch_shapes=[pltpu.VMEM((rows, kept), jnp.float32), pltpu.VMEM((rows, kept), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=64 * 2**20
        ),
        cost_estimate=pl.CostEstimate(flops=cost.flops, bytes_accessed=cost.bytes, transcendentals=0),
        interpret=interpret,
        name="nearest",
    )(*arrays)
    return score[:, :n], index[:, :n]


def _kernel(a, b, scale, offset, mask, score_out, index_out, best, where, *, m: int, k: int) -> None:
    """One block of rows against one block of candidates. Positions are held in float32: lanes reduce only floats."""
    block = pl.program_id(2)
    rows, columns = a.shape[1], b.shape[1]

    @pl.when(block == 0)
    def _():
        best[...] = jnp.full(best.shape, -jnp.inf)
        where[...] = jnp.full(where.shape, NO_INDEX)

    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    score = lax.dot_general(
        a[0], b[0], (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
    score = score * scale[0] + offset[0]
    column = block * columns + lax.broadcasted_iota(jnp.int32, (rows, columns), 1)
    allowed = column < m
    if mask is not None:
        allowed &= mask[0].astype(jnp.int32) != 0
    score = jnp.where(allowed, score, -jnp.inf)
    column = column.astype(jnp.float32)
    if k == 1:
        _keep_best_of_lanes(score, column, best, where)
    else:
        _keep_k_best(score, column, best, where, k)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        if k > 1:
            score_out[0] = best[:, :k]
            index_out[0] = where[:, :k].astype(jnp.int32)
        else:
            top = best[...].max(-1, keepdims=True)
            score_out[0] = top
            index_out[0] = jnp.where(best[...] == top, where[...], NO_INDEX).min(-1, keepdims=True).astype(jnp.int32)


def _keep_best_of_lanes(score, column, best, where) -> None:
    """Every lane keeps its own best (the first of equals): three vector operations per entry, nothing across lanes."""
    top, at = best[...], where[...]
    for start in range(0, score.shape[1], LANES):
        part = score[:, start : start + LANES]
        better = part > top
        top = jnp.where(better, part, top)
        at = jnp.where(better, column[:, start : start + LANES], at)
    best[...], where[...] = top, at


def _keep_k_best(score, column, best, where, k: int) -> None:
    """The k best of those kept so far and of this block, in order: k passes of maximum and removal."""
    score = jnp.concatenate([best[...], score], 1)
    column = jnp.concatenate([where[...], column], 1)
    lane = lax.broadcasted_iota(jnp.int32, best.shape, 1)

    def extract(t, state):
        score, top, at = state
        value = score.max(-1, keepdims=True)
        position = jnp.where(score == value, column, NO_INDEX).min(-1, keepdims=True)
        score = jnp.where(column == position, -jnp.inf, score)
        return score, jnp.where(lane == t, value, top), jnp.where(lane == t, position, at)

    nothing = jnp.full(best.shape, -jnp.inf), jnp.full(where.shape, NO_INDEX)
    _, best[...], where[...] = lax.fori_loop(0, k, extract, (score, *nothing))


def _at_least(x: Array, axis: int, size: int) -> Array:
    """`x` padded with zeros to at least one block along `axis`; a later, partial block needs no padding."""
    short = max(0, size - x.shape[axis])
    return jnp.pad(x, [(0, short if i == axis else 0) for i in range(x.ndim)]) if short else x
