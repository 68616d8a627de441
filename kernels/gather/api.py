"""`gather`: keep rows by index, in an array or in every array of a tree."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jtok.errors import UserError
from jtok.kernels.gather import gpu, reference, tpu
from jtok.kernels.numerics import is_concrete
from jtok.kernels.platform import Implementation, by_rows, check_implementation, dispatch
from jtok.kernels.transforms import linear


def gather(
    x: PyTree[Array], index: Int[Array, "b *heads k"], *, axis: int = 1, implementation: Implementation = None
) -> PyTree[Array]:
    """Take rows along the token axis: features, positions, owners, or the keys and values of a cache.

    Args:
      x: an array, or a tree of arrays of one leading shape, [B, N, ...] for axis 1 or [B, H, N, ...] for axis 2; any
        dtype.
      index: int, [B, K], or [B, H, K] for axis 2 (separate rows for every head). [B, K] with axis 2 takes the same
        rows from every head. -1 (any index outside [0, N)) gives a row of zeros.
      axis: the token axis of `x`, 1 or more.
      implementation: None (the fastest of the platform), "xla" or "pallas". The kernels take rows of at least 64 (TPU)
        or 16 (GPU) numbers; single numbers and coordinates are left to XLA.

    Returns:
      The same tree with K rows in place of N; every dtype kept. Differentiable in `x`; rows taken twice
      add up, in float32.

    Raises:
      UserError: shapes or dtypes that do not fit, an index known to be N or more, or an implementation that cannot run.
    """
    check_implementation("gather", implementation)
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise UserError(f"gather: index is {index.dtype}; pass integers.")
    for leaf in jax.tree.leaves(x):
        _check(leaf, index, axis)
    return jax.tree.map(lambda leaf: by_rows(partial(_gather, axis, implementation), leaf, index), x)


def _gather(axis: int, implementation: Implementation, x: Array, index: Array) -> Array:
    lead, n, trailing = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    if index.ndim == 2 and axis > 1:
        shared = index.reshape(index.shape[:1] + (1,) * (axis - 1) + index.shape[1:])
        index = jnp.broadcast_to(shared, lead + index.shape[1:])
    k = index.shape[-1]
    groups = math.prod(lead)
    taken = take(x.reshape(groups, n, math.prod(trailing)), index.reshape(groups, k).astype(jnp.int32), implementation)
    return taken.reshape(*lead, k, *trailing)


def take(x: Array, index: Int[Array, "g k"], implementation: Implementation) -> Array:
    """Rows of x [G, N, D] by index, differentiable where x is."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return _forward(x, index, implementation)
    return _take(x, index, x.shape[1], implementation)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _take(x: Array, index: Array, n: int, implementation: Implementation) -> Array:
    return _forward(x, index, implementation)


def _forward(x: Array, index: Array, implementation: Implementation) -> Array:
    return dispatch(
        "gather", x, index,
        xla=reference.take,
        tpu=tpu.take if tpu.takes(x, index) else None,
        gpu=gpu.take if gpu.takes(x, index) else None,
        implementation=implementation,
    )  # fmt: skip


@_take.defjvp
def _take_jvp(n, implementation, primals, tangents):
    from jtok.kernels.merge.api import segment_sum  # each of the two ops is the other's transpose

    x, index = primals

    def spread(index, slope):
        return segment_sum(slope, index, None, n, implementation)[0].astype(slope.dtype)

    forward = lambda index, slope: _take(slope, index, n, implementation)  # noqa: E731
    return _take(x, index, n, implementation), linear(forward, spread, index, tangents[0])


def _check(x: Array, index: Array, axis: int) -> None:
    if not 1 <= axis < x.ndim:
        raise UserError(f"gather: axis={axis} is not a token axis of x {x.shape}; pass 1 <= axis < {x.ndim}.")
    if index.shape[:-1] not in (x.shape[:axis], x.shape[:1]):
        raise UserError(
            f"gather: index has shape {index.shape}; for x {x.shape} and axis={axis} pass {list(x.shape[:axis])} + [K]"
            f" or [{x.shape[0]}, K]."
        )
    if is_concrete(index) and index.size and int(np.asarray(index).max()) >= x.shape[axis]:
        raise UserError(f"gather: index holds {int(index.max())}, but axis {axis} of x has only {x.shape[axis]} rows.")
