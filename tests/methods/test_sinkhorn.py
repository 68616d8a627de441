"""Sinkhorn pooling: what the iterations leave balanced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jtok.methods.vit.sinkhorn import transport
from tests.methods import catalogue as c


def logits() -> jax.Array:
    return 3 * jax.random.normal(jax.random.key(0), (2, 5, 20))


def test_the_last_update_makes_each_patch_sum_to_one():
    weights = transport(logits(), 3)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert np.abs(np.asarray(weights.sum(2)) - 1).min() > 0.1, "rows sum to about N/K, not to one"
    np.testing.assert_allclose(transport(logits(), 200).sum(2), 4, rtol=1e-3)


def test_padding_changes_nothing():
    valid = jnp.arange(24) < 20
    padded = jnp.pad(logits(), ((0, 0), (0, 0), (0, 4)), constant_values=9.0)
    weights = transport(padded, 3, jnp.broadcast_to(valid, (2, 24)))
    np.testing.assert_allclose(weights[:, :, :20], transport(logits(), 3), atol=1e-6)
    assert not weights[:, :, 20:].any()


def test_new_tokens_are_sums_of_unit_patches():
    reducer, t = c.first_reducer("sinkhorn", 0.5), c.tokens()
    scaled = t.replace(x=t.x.at[:, 1:].multiply(7.0))
    out, _ = reducer(t, c.signals(reducer, t), {})
    np.testing.assert_allclose(reducer(scaled, c.signals(reducer, t), {})[0].x[:, 1:], out.x[:, 1:], atol=1e-5)
    unit = t.x[:, 1:] / jnp.linalg.norm(t.x[:, 1:], axis=-1, keepdims=True)
    np.testing.assert_allclose(out.x[:, 1:].sum(1), unit.sum(1), atol=1e-4)


def test_no_gradient_goes_along_the_length_of_a_cluster_vector():
    reducer, t = c.first_reducer("sinkhorn", 0.5), c.tokens()
    grads = jax.grad(lambda v: (reducer_with(reducer, v)(t, c.signals(reducer, t), {})[0].x ** 2).sum())(
        reducer.vectors[...]
    )
    along = (grads * reducer.vectors[...]).sum(-1)
    assert np.abs(grads).max() > 1e-3
    np.testing.assert_allclose(along, 0, atol=1e-4)


def reducer_with(reducer, vectors):
    from flax import nnx

    graphdef, state = nnx.split(reducer)
    nnx.replace_by_pure_dict(state, {"vectors": vectors})
    return nnx.merge(graphdef, state)
