"""`nearest`: for every row of one set, the best match in another."""

from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.kernels.nearest import gpu, reference, tpu
from jtok.kernels.numerics import is_concrete
from jtok.kernels.platform import Implementation, by_rows, check_implementation, dispatch

METRICS = ("cosine", "dot", "l2")


def nearest(
    a: Float[Array, "*batch n d"],
    b: Float[Array, "*batch m d"],
    *,
    metric: Literal["cosine", "dot", "l2"] = "cosine",
    mask: Bool[Array, "..."] | None = None,
    k: int = 1,
    implementation: Implementation = None,
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """The best match in `b` of every row of `a`; never an [N, M] array of scores where N * M is large.

    Args:
      a: [B, N, D] or [N, D], any float dtype.
      b: [B, M, D], or [M, D] shared by all (a codebook); the dtype of `a`.
      metric: "cosine" (a row of zeros has similarity 0 to everything), "dot", or "l2" (squared Euclidean distance,
        the smallest is best).
      mask: bool, True where a candidate may be matched: [M], [B, M] or [B, N, M] ([M] or [N, M] without a batch).
      k: number of matches per row. k = 1 gives [B, N]; more gives [B, N, k], best first.
      implementation: None (the fastest of the platform), "xla" or "pallas".

    Returns:
      value, float32: the similarity, or the squared distance. Differentiable in `a` and in the chosen rows of `b`.
      index, int32: which row of `b`; the lowest of equals. Not differentiable.
      A row with fewer than k candidates ends in value -inf (+inf for "l2") and index 0.

    Raises:
      UserError: shapes, dtypes, metric or k that do not fit, or a mask known to be empty.
    """
    check_implementation("nearest", implementation)
    _check(a, b, metric, mask, k)
    a, b = jnp.asarray(a), jnp.asarray(b)
    batched = a.ndim == 3
    rows = a if batched else a[None]
    candidates = b if b.ndim == 3 else b[None]
    if mask is not None and not batched and mask.ndim == 2:
        mask = mask[None]
    value, index = _match_rows(rows, candidates, mask, metric, k, implementation)
    shape = a.shape[:-1] + ((k,) if k > 1 else ())
    return value.reshape(shape), index.reshape(shape)


def _match_rows(rows, candidates, mask, metric, k, implementation):
    """Value and index [B, N, k], with each device of a mesh matching its own rows of the batch."""
    common, many = candidates.shape[0] == 1, mask is not None and mask.ndim > 1

    def match(rows, per_row, row_mask, shared, shared_mask):
        candidates = shared if per_row is None else per_row
        mask = shared_mask if row_mask is None else row_mask
        shape = (*rows.shape[:2], k)
        if common and not many:
            rows = rows.reshape(1, -1, rows.shape[-1])  # one set of candidates for all: the batch is only more rows
        score, index = _search(rows, candidates, mask, metric, k, implementation)
        matched = score > -jnp.inf
        index = jnp.where(matched, index, 0)
        value = reference.value(rows, candidates, index, score, metric)
        value = jnp.where(matched, value, jnp.inf if metric == "l2" else -jnp.inf)
        return value.reshape(shape), index.reshape(shape)

    per_row = None if common else candidates, mask if many else None
    shared = candidates if common else None, None if many else mask
    return by_rows(match, rows, *per_row, shared=shared)


def _search(rows, candidates, mask, metric, k, implementation):
    """Score and index [G, N, k]; score -inf where there was no candidate. No gradient enters, so the kernels need no
    backward pass."""
    rows, candidates = lax.stop_gradient((rows, candidates))
    pairs = mask if mask is not None and mask.ndim == 3 else None
    row_mask = None if mask is None or pairs is not None else jnp.broadcast_to(mask, (rows.shape[0], mask.shape[-1]))
    scale, offset = reference.columns(candidates, row_mask, metric)
    scale, offset = (jnp.broadcast_to(x, (rows.shape[0], x.shape[-1])) for x in (scale, offset))
    return dispatch(
        "nearest", rows, candidates, scale, offset, pairs,
        xla=partial(reference.search, k=k),
        tpu=partial(tpu.search, k=k) if tpu.takes(rows, candidates, k) else None,
        gpu=partial(gpu.search, k=k) if gpu.takes(rows, candidates, k) else None,
        implementation=implementation,
    )  # fmt: skip


def _check(a, b, metric, mask, k) -> None:
    if metric not in METRICS:
        raise UserError(f"nearest: metric={metric!r} is not known; pass 'cosine', 'dot' or 'l2'.")
    if a.ndim not in (2, 3) or b.ndim not in (2, 3) or b.ndim > a.ndim:
        raise UserError(f"nearest: a has shape {a.shape} and b {b.shape}; pass a [B, N, D] and b [B, M, D] or [M, D].")
    if a.shape[-1] != b.shape[-1] or (b.ndim == 3 and a.shape[0] != b.shape[0]):
        raise UserError(f"nearest: a {a.shape} and b {b.shape} must agree in their batch and in their last axis.")
    if a.dtype != b.dtype or not jnp.issubdtype(a.dtype, jnp.floating):
        raise UserError(f"nearest: a is {a.dtype} and b {b.dtype}; pass one floating dtype for both.")
    n, m = a.shape[-2], b.shape[-2]
    if not 1 <= k <= m:
        raise UserError(f"nearest: k={k} matches were asked of {m} candidates; pass 1 <= k <= {m}.")
    if mask is None:
        return
    shapes = [(m,), a.shape[:-2] + (m,), a.shape[:-2] + (n, m)]
    if mask.dtype != jnp.bool_ or mask.shape not in shapes:
        wanted = " or ".join(map(str, dict.fromkeys(shapes)))
        raise UserError(f"nearest: mask is {mask.dtype} {mask.shape}; pass bool of shape {wanted}.")
    if is_concrete(mask) and not np.asarray(mask).any():
        raise UserError("nearest: mask allows no candidate at all; set at least one entry to True.")
