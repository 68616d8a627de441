"""`gather` on a GPU (Triton): every program copies a few rows, a block of features at a time."""

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Int

from jtok.kernels.gather.shapes import Shape, floor
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

# Rows and bytes of each row that a program copies; warps.
BLOCKS = {"ampere": (4, 2048, 4), "hopper": (4, 2048, 4), "blackwell": (4, 2048, 4)}


def takes(x: Array, index: Int[Array, "g k"]) -> bool:
    """Whether the kernel can run: rows of features."""
    del index
    return x.ndim == 3


def take(x: Array, index: Int[Array, "g k"], *, interpret: bool = False) -> Array:
    """As `reference.take`, for x [G, N, D]."""
    (g, n, d), k, dtype = x.shape, index.shape[1], x.dtype
    if dtype == jnp.bool_:
        x = x.astype(jnp.int8)
    rows, width, warps = block_sizes(BLOCKS, "hopper")
    features = min(pl.next_power_of_2(d), width // x.dtype.itemsize)
    cost = floor(Shape(g, n, k, d), itemsize=x.dtype.itemsize)
    out = pl.pallas_call(
        lambda *refs: _kernel(*refs, rows=rows, features=features),
        grid=(pl.cdiv(k, rows), pl.cdiv(d, features), g),
        out_shape=result((g, k, d), x.dtype, x),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        cost_estimate=pl.CostEstimate(flops=cost.flops, bytes_accessed=cost.bytes, transcendentals=0),
        interpret=interpret,
        name="gather",
    )(x, index)
    return out.astype(dtype)


def _kernel(x, index, out, *, rows: int, features: int) -> None:
    (_, n, d), k = x.shape, index.shape[1]
    group = pl.program_id(2)
    row = pl.program_id(0) * rows + jnp.arange(rows)
    feature = pl.program_id(1) * features + jnp.arange(features)
    row_slice, feature_slice = pl.ds(pl.program_id(0) * rows, rows), pl.ds(pl.program_id(1) * features, features)
    picked = triton.load(index.at[group, row_slice], mask=row < k, other=-1)
    inside = (picked >= 0) & (picked < n)
    ok = (feature < d)[None]
    copy = triton.load(
        x.at[group, jnp.where(inside, picked, 0)[:, None], feature[None]], mask=inside[:, None] & ok, other=0
    )
    triton.store(out.at[group, row_slice, feature_slice], copy, mask=(row < k)[:, None] & ok)
