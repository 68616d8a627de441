"""`merge`: weighted sum or mean of the rows assigned to every segment."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.kernels.gather.api import take
from jtok.kernels.gather.reference import take as reference_take
from jtok.kernels.merge import gpu, reference, tpu
from jtok.kernels.numerics import is_concrete
from jtok.kernels.platform import Implementation, by_rows, check_implementation, dispatch
from jtok.kernels.transforms import linear


def merge(
    x: Float[Array, "b n d"],
    assign: Int[Array, "b n"],
    num: int,
    *,
    weight: Float[Array, "b n"] | None = None,
    mode: Literal["sum", "mean"] = "sum",
    implementation: Implementation = None,
) -> tuple[Float[Array, "b num d"], Float[Array, "b num"]]:
    """Fold N rows into `num` by an assignment.

    Args:
      x: [B, N, D], any float dtype.
      assign: int [B, N], the segment of every row, in [0, num); -1 drops the row.
      num: number of segments.
      weight: float [B, N], None for ones.
      mode: "sum" of weight * x, or "mean": that sum over the segment's mass.
      implementation: None (the fastest of the platform), "xla" or "pallas".

    Returns:
      merged [B, num, D] in the dtype of x, added up in float32; zeros for a segment without mass (or without rows).
      mass [B, num] float32, the sum of the weights. Both are differentiable in `x` and `weight`.

    Raises:
      UserError: shapes, dtypes, num or mode that do not fit, or an assignment known to be outside [-1, num).
    """
    check_implementation("merge", implementation)
    _check(x, assign, num, weight, mode)
    weight = None if weight is None else weight.astype(jnp.float32)
    total, mass = by_rows(partial(_sum, num, implementation), x, assign.astype(jnp.int32), weight)
    if mode == "mean":
        empty = mass == 0
        total = jnp.where(empty[..., None], 0.0, total / jnp.where(empty, 1.0, mass)[..., None])
    return total.astype(x.dtype), mass


def _sum(num, implementation, x, assign, weight):
    return segment_sum(x, assign, weight, num, implementation)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def segment_sum(
    x: Float[Array, "b n d"],
    assign: Int[Array, "b n"],
    weight: Float[Array, "b n"] | None,
    num: int,
    implementation: Implementation,
) -> tuple[Float[Array, "b num d"], Float[Array, "b num"]]:
    """Float32 sums of weight * x and of weight over every segment, differentiable in both."""
    return dispatch(
        "merge", x, assign, weight,
        xla=partial(reference.segment_sum, num=num),
        tpu=partial(tpu.segment_sum, num=num) if tpu.takes(x) else None,
        gpu=partial(gpu.segment_sum, num=num) if gpu.takes(x) else None,
        implementation=implementation,
    )  # fmt: skip


@segment_sum.defjvp
def _segment_sum_jvp(num, implementation, primals, tangents):
    forward, backward = partial(_tangents, num, implementation), partial(_slopes, implementation)
    slopes = linear(forward, backward, primals, (tangents[0], tangents[2]))
    return segment_sum(*primals, num, implementation), slopes


def _tangents(num, implementation, known, tangents):
    """Every segment takes the tangents of its rows."""
    (x, assign, weight), (rows, weigh) = known, tangents
    total, mass = segment_sum(rows, assign, weight, num, implementation)
    if weight is None:
        return total, jnp.zeros_like(mass)
    change, mass = segment_sum(x, assign, weigh, num, implementation)
    return total + change, mass


def _slopes(implementation, known, slopes):
    """Every row takes the slope of its segment (none where it joined none)."""
    x, assign, weight = known
    slope = take(slopes[0], assign, implementation)
    if weight is None:
        return slope.astype(x.dtype), None
    weigh = (x.astype(jnp.float32) * slope).sum(-1) + reference_take(slopes[1], assign)
    return (slope * weight[..., None]).astype(x.dtype), weigh


def _check(x, assign, num, weight, mode) -> None:
    if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"merge: x is {x.dtype} {x.shape}; pass floats [B, N, D].")
    if assign.shape != x.shape[:2] or not jnp.issubdtype(assign.dtype, jnp.integer):
        raise UserError(f"merge: assign is {assign.dtype} {assign.shape}; pass integers of shape {x.shape[:2]}.")
    if num < 1:
        raise UserError(f"merge: num={num} segments cannot be made; pass num >= 1.")
    if weight is not None and (weight.shape != x.shape[:2] or not jnp.issubdtype(weight.dtype, jnp.floating)):
        raise UserError(f"merge: weight is {weight.dtype} {weight.shape}; pass floats of shape {x.shape[:2]}.")
    if mode not in ("sum", "mean"):
        raise UserError(f"merge: mode={mode!r} is not known; pass 'sum' or 'mean'.")
    if is_concrete(assign) and assign.size and not (-1 <= np.asarray(assign).min() and np.asarray(assign).max() < num):
        raise UserError(f"merge: assign holds {int(assign.min())} to {int(assign.max())}; pass -1 (drop) to {num - 1}.")
