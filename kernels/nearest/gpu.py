"""`nearest` on a GPU (Triton): matmul and running best over blocks of candidates, no scores in device memory."""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from jtok.kernels.nearest.shapes import Shape, floor
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

MAX_K = 64  # the running best of a row are kept in registers
LAST = 2**31 - 1

# Rows of `a`, rows of `b` and features in a block; warps; stages of the pipeline.
BLOCKS = {
    "ampere": (64, 128, 64, 4, 3),
    "hopper": (128, 128, 64, 8, 3),
    "blackwell": (128, 128, 64, 8, 3),
}
PROGRAMS = 256  # about two for each multiprocessor: with fewer blocks of rows, the candidates are split as well


def takes(a: Float[Array, "g n d"], b: Float[Array, "h m d"], k: int) -> bool:
    """Whether the kernel can run: few enough matches a row."""
    return k <= MAX_K


def search(
    a: Float[Array, "g n d"],
    b: Float[Array, "h m d"],
    scale: Float[Array, "g m"],
    offset: Float[Array, "g m"],
    mask: Bool[Array, "g n m"] | None,
    *,
    k: int = 1,
    interpret: bool = False,
) -> tuple[Float[Array, "g n k"], Int[Array, "g n k"]]:
    """As `reference.search`."""
    (g, n, d), (h, m, _) = a.shape, b.shape
    rows, columns, features, warps, stages = block_sizes(BLOCKS, "hopper")
    limits = zip((rows, columns, features), (n, m, d), strict=True)
    rows, columns, features = (min(size, max(16, pl.next_power_of_2(have))) for size, have in limits)
    blocks = pl.cdiv(m, columns)
    splits = max(1, min(blocks, PROGRAMS // (g * pl.cdiv(n, rows))))
    per_split = pl.cdiv(blocks, splits)
    cost = floor(Shape(g, n, m, d, "dot", k, shared=h == 1), itemsize=a.dtype.itemsize)

    def kernel(*refs):
        _kernel(*refs, rows=rows, columns=columns, features=features, blocks=per_split, k=k)

    score, index = pl.pallas_call(
        kernel if mask is not None else lambda *refs: kernel(*refs[:4], None, *refs[4:]),
        grid=(pl.cdiv(n, rows), splits, g),
        out_shape=[
            result((g, n, splits, k), jnp.float32, a),
            result((g, n, splits, k), jnp.int32, a),
        ],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        cost_estimate=pl.CostEstimate(flops=cost.flops, bytes_accessed=cost.bytes, transcendentals=0),
        interpret=interpret,
        name="nearest",
    )(a, b, scale, offset, *([] if mask is None else [mask]))
    if splits == 1:
        return score[:, :, 0], index[:, :, 0]
    # Splits hold rising ranges of candidates, so that the first of equals is still the lowest index.
    score, place = lax.top_k(score.reshape(g, n, -1), k)
    return score, jnp.take_along_axis(index.reshape(g, n, -1), place, -1)


def _kernel(a, b, scale, offset, mask, score_out, index_out, *, rows, columns, features, blocks, k) -> None:
    """One block of rows against `blocks` blocks of candidates."""
    start, split, image = pl.program_id(0) * rows, pl.program_id(1), pl.program_id(2)
    (_, n, d), (h, m, _) = a.shape, b.shape
    owner = image * int(h > 1)
    here = pl.ds(start, rows)
    row_ok = start + jnp.arange(rows) < n
    kept = pl.next_power_of_2(k)
    slot = lax.broadcasted_iota(jnp.int32, (rows, kept), 1)

    def scores(first):
        candidate_slice = pl.ds(first, columns)
        column = first + jnp.arange(columns)
        ok = column < m

        def add(t, total):
            feature_slice = pl.ds(t * features, features)
            inside = t * features + jnp.arange(features) < d
            x = triton.load(a.at[image, here, feature_slice], mask=row_ok[:, None] & inside[None], other=0.0)
            y = triton.load(b.at[owner, candidate_slice, feature_slice], mask=ok[:, None] & inside[None], other=0.0)
            return total + _dot(x, y)

        total = lax.fori_loop(0, pl.cdiv(d, features), add, jnp.zeros((rows, columns), jnp.float32))
        factor = triton.load(scale.at[image, candidate_slice], mask=ok, other=0.0)
        shift = triton.load(offset.at[image, candidate_slice], mask=ok, other=-jnp.inf)
        total = total * factor[None] + shift[None]
        if mask is not None:
            allowed = triton.load(mask.at[image, here, candidate_slice], mask=row_ok[:, None] & ok[None], other=False)
            total = jnp.where(allowed, total, -jnp.inf)
        return total, jnp.broadcast_to(column[None], total.shape)

    def block(c, state):
        score, column = scores((split * blocks + c) * columns)
        state = lax.fori_loop(0, k, lambda _, s: _keep(*s), (score, column, *state))
        return state[2:]

    # Slots beyond k are never the smallest, so never filled; the others have places of their own from the start.
    empty = jnp.where(slot < k, -jnp.inf, jnp.inf), LAST - slot
    best, where = lax.fori_loop(0, blocks, block, empty)
    best = jnp.where(slot < k, best, -jnp.inf)

    def write(t, best):
        top, position, taken = _first(best, where, best.max(1))
        triton.store(score_out.at[image, here, split, t], top, mask=row_ok)
        triton.store(index_out.at[image, here, split, t], position, mask=row_ok)
        return jnp.where(taken, -jnp.inf, best)

    lax.fori_loop(0, k, write, best)


def _dot(x, y):
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot_general(x, y, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _first(score, column, value):
    """Of the entries equal to `value` in every row, the lowest column; and where it stands."""
    position = jnp.where(score == value[:, None], column, LAST).min(1)
    return value, position, (column == position[:, None]) & (score == value[:, None])


def _keep(score, column, best, where):
    """Move the best of `score` to the place of the worst of `best`, if better; equal ones came earlier and stay."""
    top, position, taken = _first(score, column, score.max(1))
    worst = best.min(1)
    oldest = jnp.where(best == worst[:, None], where, -1).max(1)  # of equally bad ones the highest index goes
    out = (best == worst[:, None]) & (where == oldest[:, None]) & (top > worst)[:, None]
    best, where = jnp.where(out, top[:, None], best), jnp.where(out, position[:, None], where)
    return jnp.where(taken, -jnp.inf, score), column, best, where
