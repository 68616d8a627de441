"""`merge` on TPU: a matmul with the one-hot assignment, which is built in registers and never stored.

A factor of one keeps every bit of a row (in one pass for bfloat16, in split passes for float32), and sums are float32.
With weights the product is float32 as well. An infinite or NaN feature spreads over all segments, also from a row that
is dropped.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jtok.kernels.merge.shapes import Shape, floor
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

LANES = 128

# Segments, rows and features in a block.
BLOCKS = {"v4": (256, 256, 512), "v5e": (256, 512, 1024), "v5p": (256, 512, 1024), "v6e": (512, 512, 1024)}


def takes(x: Float[Array, "b n d"]) -> bool:
    """Whether the kernel can run: features at least half a register wide."""
    return x.shape[2] >= LANES // 2


def segment_sum(
    x: Float[Array, "b n d"],
    assign: Int[Array, "b n"],
    weight: Float[Array, "b n"] | None,
    *,
    num: int,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Float[Array, "b num d"], Float[Array, "b num"]]:
    """As `reference.segment_sum`."""
    if x.dtype == jnp.float16:  # no float16 in the vector units
        x = x.astype(jnp.float32)
    b, n, d = x.shape
    segments, rows, features = block_sizes(BLOCKS, "v5e")
    segments, rows, features = min(segments, pl.align_to(num, 8)), min(rows, n), min(features, d)
    cost = floor(Shape(b, n, num, d), itemsize=x.dtype.itemsize)
    per_row = pl.BlockSpec((1, 1, rows), lambda i, s, f, r: (i, 0, r))
    total, mass = pl.pallas_call(
        lambda *refs: _kernel(*refs[:2], refs[2] if weight is not None else None, *refs[-2:], n=n),
        grid=(b, pl.cdiv(num, segments), pl.cdiv(d, features), pl.cdiv(n, rows)),
        in_specs=[pl.BlockSpec((1, rows, features), lambda i, s, f, r: (i, r, f))]
        + [per_row] * (1 if weight is None else 2),
        out_specs=[
            pl.BlockSpec((1, segments, features), lambda i, s, f, r: (i, s, f)),
            pl.BlockSpec((1, segments, LANES), lambda i, s, f, r: (i, s, 0)),
        ],
        out_shape=[
            result((b, pl.align_to(num, segments), d), jnp.float32, x),
            result((b, pl.align_to(num, segments), LANES), jnp.float32, x),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=64 * 2**20
        ),
        cost_estimate=pl.CostEstimate(flops=2 * b * num * n * d, bytes_accessed=cost.bytes, transcendentals=0),
        interpret=interpret,
        name="merge",
    )(x, *(v[:, None] for v in (assign, weight) if v is not None))
    return total[:, :num], mass[:, :num, 0]


def _kernel(x, assign, weight, total, mass, *, n: int) -> None:
    """Add one block of rows to one block of segments; the mass is added beside the first block of features."""
    first_features, block = pl.program_id(2) == 0, pl.program_id(3)
    segments, rows = total.shape[1], x.shape[1]

    @pl.when(block == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    @pl.when((block == 0) & first_features)
    def _():
        mass[...] = jnp.zeros_like(mass)

    segment = pl.program_id(1) * segments + lax.broadcasted_iota(jnp.int32, (segments, rows), 0)
    row = block * rows + lax.broadcasted_iota(jnp.int32, (segments, rows), 1)
    mine = (assign[0] == segment) & (row < n)
    values = x[0]
    if n % rows:  # the last block reads past the end, and zero times whatever is there may be NaN
        inside = block * rows + lax.broadcasted_iota(jnp.int32, values.shape, 0) < n
        values = jnp.where(inside, values, jnp.zeros_like(values))
    factor = jnp.where(mine, 1.0 if weight is None else weight[0], 0.0)
    exact = values.dtype == jnp.bfloat16 and weight is None
    total[0] += jnp.dot(
        factor.astype(jnp.bfloat16) if exact else factor,
        values if exact else values.astype(jnp.float32),
        precision=lax.Precision.DEFAULT if exact else lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )

    @pl.when(first_features)
    def _():
        mass[0] += factor.sum(-1, keepdims=True)
