"""`gather` on TPU: a set of rows waits in VMEM, and the kept ones are copied out one by one.

`take_along_axis` does not lower there, and a matmul with one-hot rows would spread an infinite or NaN feature over all
of them.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from jtok.kernels.gather.shapes import Shape, floor
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

LANES = 128
UNROLL = 8  # copies in flight together
WIDEST = 2048  # features in a block: long enough rows for the transfers to run at full rate

# Bytes of VMEM that one block of the rows and one of the result may take, float32 copies and second buffers included.
BUDGET = {"v4": 10 * 2**20, "v5e": 48 * 2**20, "v5p": 40 * 2**20, "v6e": 48 * 2**20}


def width(n: int, k: int, d: int, itemsize: int) -> int:
    """Features in a block, 0 if not even one register's width of all rows fits."""
    row = 2 * itemsize + (4 if itemsize < 4 else 0)  # two buffers, and 32 bits each where rows are narrower
    fits = block_sizes(BUDGET, "v5e") // ((pl.align_to(n, 32) + pl.align_to(k, 32)) * row) // LANES * LANES
    return min(fits, WIDEST, pl.align_to(d, LANES))


def takes(x: Array, index: Int[Array, "g k"]) -> bool:
    """Whether the kernel can run: rows of features (at least half a register wide) that fit."""
    if x.ndim != 3 or x.shape[2] < LANES // 2 or x.dtype.itemsize > 4:
        return False
    return width(x.shape[1], index.shape[1], x.shape[2], x.dtype.itemsize) > 0


def take(x: Array, index: Int[Array, "g k"], *, interpret: bool | pltpu.InterpretParams = False) -> Array:
    """As `reference.take`, for x [G, N, D]."""
    (g, n, d), k, dtype = x.shape, index.shape[1], x.dtype
    if dtype == jnp.float16:  # no float16 in the vector units: only the bits travel
        x = lax.bitcast_convert_type(x, jnp.int16)
    if dtype == jnp.bool_:
        x = x.astype(jnp.int8)
    block = width(n, k, d, x.dtype.itemsize)
    block = d if block >= d else block
    wide = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32
    narrow = x.dtype.itemsize < 4
    cost = floor(Shape(g, n, k, d), itemsize=x.dtype.itemsize)
    out = pl.pallas_call(
        _kernel_narrow if narrow else _kernel,
        grid=(g, pl.cdiv(d, block)),
        in_specs=[
            pl.BlockSpec((1, 1, k), lambda i, j: (i, 0, 0), memory_space=pltpu.SMEM),
            pl.BlockSpec((1, n, block), lambda i, j: (i, 0, j)),
        ],
        out_specs=pl.BlockSpec((1, k, block), lambda i, j: (i, 0, j)),
        out_shape=result((g, k, d), x.dtype, x),
        scratch_shapes=[pltpu.VMEM((n, block), wide), pltpu.VMEM((k, block), wide)] if narrow else [],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=block_sizes(BUDGET, "v5e") * 5 // 4
        ),
        cost_estimate=pl.CostEstimate(flops=cost.flops, bytes_accessed=cost.bytes, transcendentals=0),
        interpret=interpret,
        name="gather",
    )(index[:, None], x)
    if dtype == jnp.float16:
        return lax.bitcast_convert_type(out, dtype)
    return out.astype(dtype)


def _kernel(index, x, out) -> None:
    _copy(index, x.at[0], out.at[0])


def _kernel_narrow(index, x, out, wide_x, wide_out) -> None:
    """Single rows can be addressed in 32 bits only: widen all, copy, narrow what was kept."""
    wide_x[...] = x[0].astype(wide_x.dtype)
    _copy(index, wide_x, wide_out)
    out[0] = wide_out[...].astype(out.dtype)


def _copy(index, rows, out) -> None:
    n, k = rows.shape[0], out.shape[0]

    def one(t, _):
        i = index[0, 0, t]
        inside = (i >= 0) & (i < n)
        row = rows[pl.ds(jnp.where(inside, i, 0), 1), :]
        out[pl.ds(t, 1), :] = jnp.where(inside, row, jnp.zeros_like(row))

    whole = k // UNROLL * UNROLL
    lax.fori_loop(0, whole // UNROLL, lambda s, _: [one(s * UNROLL + u, None) for u in range(UNROLL)] and None, None)
    for t in range(whole, k):
        one(t, None)
