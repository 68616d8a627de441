"""`max_min_select` on a GPU (Triton): all distances by one matmul, then the whole loop in one launch.

A step of the loop reads one row of distances (kilobytes). Computing that row from the features instead would make one
multiprocessor read an image's features (megabytes) in every step.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from jtok.kernels.max_min_select.reference import begin_from_matrix, distances
from jtok.kernels.platform import block_sizes
from jtok.kernels.transforms import result

WARPS = {"ampere": 8, "hopper": 8, "blackwell": 8}
MAX_N = 2**14  # tokens of an image whose state fits the registers of one program


def takes(x: Float[Array, "b n d"]) -> bool:
    """Whether the kernel can run: the state of an image fits one program."""
    return x.shape[1] <= MAX_N


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
    interpret: bool = False,
) -> Int[Array, "b k"]:
    """As `reference.select`."""
    b, n, _ = x.shape
    distance = distances(x, metric)
    state = begin_from_matrix(distance, weight, bonus, first, chosen, valid)
    return pl.pallas_call(
        lambda *refs: _kernel(*refs, size=pl.next_power_of_2(n)),
        grid=(b,),
        out_shape=result((b, k), jnp.int32, x),
        compiler_params=triton.CompilerParams(num_warps=block_sizes(WARPS, "hopper"), num_stages=1),
        cost_estimate=pl.CostEstimate(flops=4 * b * k * n, bytes_accessed=4 * b * k * (n + 1), transcendentals=0),
        interpret=interpret,
        name="max_min_select",
    )(distance, *state)


def _kernel(distance, gain, apart, weight, bonus, picks, *, size: int) -> None:
    (_, n), k = gain.shape, picks.shape[1]
    image = pl.program_id(0)
    token = jnp.arange(size)
    tokens = pl.ds(0, size)

    def read(array, other):
        return triton.load(array.at[image, tokens], mask=token < n, other=other)

    weigh = read(weight, 0.0)

    def step(t, state):
        gain, apart, bonus = state
        best = gain.max()
        pick = jnp.minimum(jnp.where(gain == best, token, size).min(), n - 1)
        picks[image, t] = jnp.where(best > -jnp.inf, pick, -1)
        row = triton.load(distance.at[image, pick, tokens], mask=token < n, other=0.0)
        apart = jnp.minimum(apart, row)
        bonus = jnp.where(token == pick, -jnp.inf, bonus)
        return apart * weigh + bonus, apart, bonus

    lax.fori_loop(0, k, step, (read(gain, -jnp.inf), read(apart, 0.0), read(bonus, -jnp.inf)))
