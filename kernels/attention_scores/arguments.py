"""Checking and normalising the arguments of `attention_scores`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok.errors import UserError
from jtok.kernels.attention_scores.reference import NEGATIVE


def key_bias(bias, valid):
    """One additive float32 [B,M], or None: NEGATIVE where a key does not exist."""
    if bias is None and valid is None:
        return None
    total = jnp.float32(0.0) if bias is None else jnp.maximum(bias.astype(jnp.float32), NEGATIVE)
    return total if valid is None else jnp.where(valid, total, NEGATIVE)


def row_index(rows: Any, b: int, n: int):
    """The scored rows as int32 [B,R] in [0, n); static ones are checked."""
    if not isinstance(rows, jax.Array):
        rows = np.asarray(rows)
        if np.issubdtype(rows.dtype, np.integer) and np.any((rows < -n) | (rows >= n)):
            raise UserError(f"attention_scores: rows={rows.tolist()} leaves the {n} query rows; pass {-n} to {n - 1}.")
        rows = jnp.asarray(rows)
    if rows.ndim == 0:
        rows = rows[None]
    if not jnp.issubdtype(rows.dtype, jnp.integer) or rows.ndim > 2 or (rows.ndim == 2 and rows.shape[0] != b):
        raise UserError(
            f"attention_scores: rows is {rows.dtype}{list(rows.shape)}; pass integers [R] or [B, R] with B = {b}."
        )
    if rows.shape[-1] == 0:
        raise UserError("attention_scores: rows is empty; pass rows=None where no scores are wanted.")
    rows = jnp.where(rows < 0, rows + n, rows).astype(jnp.int32)
    return jnp.broadcast_to(rows, (b, rows.shape[-1]))


def weights_of_rows(row_weights, shape):
    if row_weights is None:
        return jnp.ones(shape, jnp.float32)
    if row_weights.shape != shape:
        raise UserError(
            f"attention_scores: row_weights has shape {list(row_weights.shape)};"
            f" pass one weight for each scored row, {list(shape)}."
        )
    return row_weights.astype(jnp.float32)


def check_arrays(q, k, v, bias, valid):
    if q.ndim != 4 or k.ndim != 4 or 0 in q.shape or 0 in k.shape:
        raise UserError(
            f"attention_scores: q {list(q.shape)} and k {list(k.shape)} must be [B,N,H,D] and [B,M,Hk,D], not empty."
        )
    if k.shape != v.shape:
        raise UserError(f"attention_scores: k {list(k.shape)} and v {list(v.shape)} must have one shape [B, M, Hk, D].")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise UserError(
            f"attention_scores: q {list(q.shape)} and k {list(k.shape)} must agree in axes 0 (batch) and 3 (width)."
        )
    if q.shape[2] % k.shape[2]:
        raise UserError(
            f"attention_scores: {q.shape[2]} query heads cannot share {k.shape[2]} key heads; pass a divisor as Hk."
        )
    if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(q.dtype, jnp.floating):
        raise UserError(
            f"attention_scores: q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; pass one float dtype for all three."
        )
    for name, x in (("bias", bias), ("valid", valid)):
        if x is not None and x.shape != k.shape[:2]:
            raise UserError(f"attention_scores: {name} has shape {list(x.shape)}; pass [B, M] = {list(k.shape[:2])}.")
    if valid is not None and valid.dtype != jnp.bool_:
        raise UserError(f"attention_scores: valid is {valid.dtype}; pass booleans, True where the key exists.")
