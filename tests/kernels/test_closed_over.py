"""Arrays known at trace time, closed over inside a trace, are checked without being traced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jtok import kernels
from jtok.errors import UserError

X = jnp.arange(24.0).reshape(1, 6, 4)


def traced(call):
    """Runs `call` with a known array inside another trace."""
    return jax.jit(lambda x: jax.lax.fori_loop(0, 1, lambda _, y: y + call(x), 0.0))(X)


def test_known_masks_and_indices_inside_a_trace():
    known = jnp.ones((1, 6), bool)
    index = jnp.zeros((1, 2), jnp.int32)
    assert jnp.isfinite(traced(lambda x: kernels.nearest(x, x, mask=known)[0].sum()))
    assert jnp.isfinite(traced(lambda x: kernels.gather(x, index).sum()))
    assert jnp.isfinite(traced(lambda x: kernels.merge(x, jnp.zeros((1, 6), jnp.int32), 2)[0].sum()))
    assert jnp.isfinite(traced(lambda x: 1.0 * kernels.max_min_select(x, 2, valid=known).sum()))


def test_a_known_empty_mask_is_still_refused():
    empty = jnp.zeros((1, 6), bool)
    with pytest.raises(UserError, match="mask"):
        traced(lambda x: kernels.nearest(x, x, mask=empty)[0].sum())
