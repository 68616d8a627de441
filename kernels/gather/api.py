"""`gather`: keep rows by index, in an array or in every array of a tree."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jtok.errors import UserError
from jtok.kernels.gather import reference
from jtok.kernels.numerics import is_concrete
from jtok.kernels.platform import Implementation, dispatch


def gather(
    x: PyTree[Array], index: Int[Array, "b *heads k"], *, axis: int = 1, implementation: Implementation = None
) -> PyTree[Array]:
    """Take rows along the token axis: features, positions, owners, or the keys and values of a cache.

    Args:
      x: an array, or a tree of arrays of one leading shape, [B, N, ...] for axis 1 or [B, H, N, ...] for axis 2; any
        dtype.
      index: int, [B, K], or [B, H, K] for axis 2 (rows of its own for every head). [B, K] with axis 2 takes the same
        rows from every head. -1 (any index outside [0, N)) gives a row of zeros.
      axis: the token axis of `x`, 1 or more.
      implementation: None (the fastest of the platform), "xla" or "pallas".

    Returns:
      The same tree with K rows in place of N; every dtype kept. Differentiable in `x`; rows taken twice add up.

    Raises:
      UserError: shapes or dtypes that do not fit, or an index known to be N or more.
    """
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise UserError(f"gather: index is {index.dtype}; pass integers.")
    return jax.tree.map(lambda leaf: _take(leaf, index, axis, implementation), x)


def _take(x: Array, index: Array, axis: int, implementation: Implementation) -> Array:
    _check(x, index, axis)
    lead, n = x.shape[:axis], x.shape[axis]
    if index.ndim == 2 and axis > 1:
        shared = index.reshape(index.shape[:1] + (1,) * (axis - 1) + index.shape[1:])
        index = jnp.broadcast_to(shared, lead + index.shape[1:])
    k = index.shape[-1]
    rows = x.reshape(-1, n, *x.shape[axis + 1 :])
    index = index.reshape(-1, k).astype(jnp.int32)
    taken = dispatch("gather", rows, index, xla=reference.take, implementation=implementation)
    return taken.reshape(*lead, k, *x.shape[axis + 1 :])


def _check(x: Array, index: Array, axis: int) -> None:
    if not 1 <= axis < x.ndim:
        raise UserError(f"gather: axis={axis} is not a token axis of x {x.shape}; pass 1 <= axis < {x.ndim}.")
    if index.shape[:-1] not in (x.shape[:axis], x.shape[:1]):
        raise UserError(
            f"gather: index has shape {index.shape}; for x {x.shape} and axis={axis} pass {list(x.shape[:axis])} + [K]"
            f" or [{x.shape[0]}, K]."
        )
    if is_concrete(index) and index.size and int(index.max()) >= x.shape[axis]:
        raise UserError(f"gather: index holds {int(index.max())}, but axis {axis} of x has only {x.shape[axis]} rows.")
