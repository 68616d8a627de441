"""`merge` on a GPU (Triton): a program owns one segment, looks through the assignment and adds its rows, in order.

Every row is read once and every sum has one owner: no atomics, the same bits in every run.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from jtok.kernels.merge.shapes import Shape, floor
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

# Rows read together; features in a block; warps.
BLOCKS = {"ampere": (32, 512, 4), "hopper": (32, 512, 4), "blackwell": (32, 512, 4)}


def takes(x: Float[Array, "b n d"]) -> bool:
    """Whether the kernel can run: rows of features, not single numbers."""
    return x.shape[2] >= 16


def segment_sum(
    x: Float[Array, "b n d"],
    assign: Int[Array, "b n"],
    weight: Float[Array, "b n"] | None,
    *,
    num: int,
    interpret: bool = False,
) -> tuple[Float[Array, "b num d"], Float[Array, "b num"]]:
    """As `reference.segment_sum`."""
    b, n, d = x.shape
    rows, features, warps = block_sizes(BLOCKS, "hopper")
    features = min(features, pl.next_power_of_2(d))
    cost = floor(Shape(b, n, num, d), itemsize=x.dtype.itemsize)
    return pl.pallas_call(
        lambda *refs: _kernel(*refs[:2], refs[2] if weight is not None else None, *refs[-2:], rows=rows, size=features),
        grid=(num, pl.cdiv(d, features), b),
        out_shape=[result((b, num, d), jnp.float32, x), result((b, num), jnp.float32, x)],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        cost_estimate=pl.CostEstimate(flops=cost.flops, bytes_accessed=cost.bytes, transcendentals=0),
        interpret=interpret,
        name="merge",
    )(x, assign, *([] if weight is None else [weight]))


def _kernel(x, assign, weight, total, mass, *, rows: int, size: int) -> None:
    _, n, d = x.shape
    segment, image = pl.program_id(0), pl.program_id(2)
    feature = pl.program_id(1) * size + jnp.arange(size)
    feature_slice = pl.ds(pl.program_id(1) * size, size)

    def block(r, state):
        row = r * rows + jnp.arange(rows)
        here = pl.ds(r * rows, rows)
        mine = triton.load(assign.at[image, here], mask=row < n, other=-1) == segment

        def add(state):
            added, weighed = state
            values = triton.load(x.at[image, here, feature_slice], mask=mine[:, None] & (feature < d)[None], other=0.0)
            factor = jnp.where(mine, 1.0, 0.0)
            if weight is not None:
                factor = triton.load(weight.at[image, here], mask=mine, other=0.0)
            return added + (values.astype(jnp.float32) * factor[:, None]).sum(0), weighed + factor.sum()

        return lax.cond(mine.astype(jnp.int32).max() > 0, add, lambda state: state, state)

    start = jnp.zeros(size, jnp.float32), jnp.float32(0.0)
    added, weighed = lax.fori_loop(0, pl.cdiv(n, rows), block, start)
    triton.store(total.at[image, segment, feature_slice], added, mask=feature < d)

    @pl.when(pl.program_id(1) == 0)
    def _():
        mass[image, segment] = weighed
