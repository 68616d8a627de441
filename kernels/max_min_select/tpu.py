"""`max_min_select` on TPU: an image's features stay in VMEM, and the whole loop is one launch.

A pick's row of distances is a matmul with the features, computed when it is needed; no matrix of distances is made.
Only the rule of the most isolated token reads all pairs: that is `nearest`, which keeps no matrix either.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from jtok.kernels.max_min_select.reference import FAR, State, begin
from jtok.kernels.max_min_select.shapes import Shape, floor
from jtok.kernels.nearest import reference as nearest_reference
from jtok.kernels.nearest import tpu as nearest_tpu
from jtok.kernels.numerics import inverse_norm
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

GROUP = 16  # rows that one load can address in any dtype; the pick is one of them
CHUNK = 512  # rows of features in one matmul
BUDGET = {"v4": 10 * 2**20, "v5e": 96 * 2**20, "v5p": 48 * 2**20, "v6e": 96 * 2**20}  # bytes of VMEM for the features


def takes(x: Float[Array, "b n d"], metric: str) -> bool:
    """Whether the kernel can run: a metric made of dot products, and an image's features fit VMEM."""
    return metric != "l1" and buffers(x) > 0 and nearest_tpu.takes(x, x, 2)


def buffers(x: Float[Array, "b n d"]) -> int:
    """Images whose features VMEM holds: 2 (the next arrives while one is worked on), 1, or 0 where it is too large."""
    _, n, d = x.shape
    size = pl.align_to(n, GROUP) * pl.align_to(d, 128) * (2 if x.dtype == jnp.bfloat16 else 4)
    return min(2, block_sizes(BUDGET, "v5e") // size)


def select(
    x: Float[Array, "b n d"],
    weight: Float[Array, "b n"] | None,
    bonus: Float[Array, "b n"] | None,
    first: Int[Array, "b"] | None,
    chosen: Bool[Array, "b n"] | None,
    valid: Bool[Array, "b n"],
    *,
    k: int,
    metric: str,
    interpret: bool | pltpu.InterpretParams = False,
) -> Int[Array, "b k"]:
    """As `reference.select`."""
    if x.dtype == jnp.float16:  # no float16 in the vector units
        x = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), -1)
    isolation = to_nearest(x, valid, squares, 2, metric, interpret) if first is None and x.shape[1] > 1 else None
    apart = None if chosen is None else to_nearest(x, chosen, squares, 1, metric, interpret)
    state = begin(weight, bonus, first, chosen, valid, isolation, apart)
    return loop(x, state, inverse_norm(x) if metric == "cosine" else squares, k=k, metric=metric, interpret=interpret)


def to_nearest(x, among, squares, rank: int, metric: str, interpret) -> Float[Array, "b n"]:
    """Distance of every token to the nearest (rank 1) `among` some; rank 2 passes over the nearest, which is itself."""
    scale, offset = nearest_reference.columns(x, among, metric)
    score = nearest_tpu.search(x, x, scale, offset, None, k=rank, interpret=interpret)[0][..., -1]
    distance = 1.0 - score * inverse_norm(x) if metric == "cosine" else jnp.maximum(squares - score, 0.0)
    return jnp.where(score > -jnp.inf, distance, FAR)


def loop(
    x: Float[Array, "b n d"],
    state: State,
    size: Float[Array, "b n"],
    *,
    k: int,
    metric: str,
    interpret: bool | pltpu.InterpretParams = False,
) -> Int[Array, "b k"]:
    """The k picks. `size`: 1 / norm of every token for cosine, its squared norm for l2."""
    b, n, d = x.shape
    padding = -n % GROUP
    if padding:
        x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
        absent = [(0, 0), (0, padding)]
        never = State(gain=-jnp.inf, apart=0.0, weight=0.0, bonus=-jnp.inf)
        state = jax.tree.map(lambda vector, value: jnp.pad(vector, absent, constant_values=value), state, never)
        size = jnp.pad(size, absent)
    n += padding
    cost = floor(Shape(b, n, k, d), itemsize=x.dtype.itemsize, isolated=False)
    vectors = jnp.stack([*state, size], 1)
    picks = pl.pallas_call(
        lambda *refs: _kernel(*refs, k=k, metric=metric),
        grid=(b,),
        in_specs=[
            pl.BlockSpec((1, n, d), lambda i: (i, 0, 0), pipeline_mode=pl.Buffered(buffers(x))),
            pl.BlockSpec((1, len(State._fields) + 1, n), lambda i: (i, 0, 0)),
        ],
        out_specs=pl.BlockSpec((1, 1, k), lambda i: (i, 0, 0), memory_space=pltpu.SMEM),
        out_shape=result((b, 1, k), jnp.int32, x),
        scratch_shapes=[pltpu.VMEM((1, n), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=block_sizes(BUDGET, "v5e") * 5 // 4
        ),
        cost_estimate=pl.CostEstimate(flops=cost.flops, bytes_accessed=cost.bytes, transcendentals=0),
        interpret=interpret,
        name="max_min_select",
    )(x, vectors)
    return picks[:, 0]


def _kernel(x, vectors, picks, dots, *, k: int, metric: str) -> None:
    n = x.shape[1]
    gain, apart, weight, bonus, size = (vectors[0, i : i + 1] for i in range(5))
    token = lax.broadcasted_iota(jnp.int32, (1, n), 1).astype(jnp.float32)

    def step(t, state):
        gain, apart, bonus = state
        best = gain.max()
        pick = jnp.where(gain == best, token, float(n - 1)).min()
        here = token == pick
        place = pick.astype(jnp.int32)
        picks[0, 0, t] = jnp.where(best > -jnp.inf, place, -1)
        _dots(x, place, dots)
        pick_size = jnp.where(here, size, 0.0).sum()
        if metric == "cosine":
            distance = 1.0 - dots[...] * size * pick_size
        else:
            distance = jnp.maximum(size + pick_size - 2.0 * dots[...], 0.0)
        apart = jnp.minimum(apart, distance)
        bonus = jnp.where(here, -jnp.inf, bonus)
        return apart * weight + bonus, apart, bonus

    lax.fori_loop(0, k, step, (gain, apart, bonus))


def _dots(x, place, dots) -> None:
    """Dot product of one token with all, chunk by chunk: a matmul with its group of rows, of which one is kept."""
    n = x.shape[1]
    start = pl.multiple_of(place // GROUP * GROUP, GROUP)
    group = x[0, pl.ds(start, GROUP), :]
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT

    def chunk(first, rows: int) -> None:
        product = lax.dot_general(
            group, x[0, pl.ds(first, rows), :], (((1,), (1,)), ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip
        mine = lax.broadcasted_iota(jnp.int32, product.shape, 0) == place - start
        dots[:, pl.ds(first, rows)] = jnp.where(mine, product, 0.0).sum(0, keepdims=True)

    whole = n // CHUNK
    if whole:
        lax.fori_loop(0, whole, lambda c, _: chunk(pl.multiple_of(c * CHUNK, CHUNK), CHUNK), None)
    if n % CHUNK:
        chunk(whole * CHUNK, n % CHUNK)
