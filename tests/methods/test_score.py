"""`peak_received` against dense attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.ops.score import peak_received

B, N, HEADS, SHARED, DIM = 2, 23, 4, 2, 8


@pytest.fixture(scope="module")
def arrays():
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (B, N, HEADS, DIM))
    k = jax.random.normal(keys[1], (B, N, SHARED, DIM))
    rows = jax.random.permutation(keys[2], jnp.arange(2, N))[None, :11].repeat(B, 0)
    return q, k, rows, jax.random.uniform(keys[3], rows.shape), jnp.arange(N) < jnp.array([[N], [17]])


def dense(q, k, rows, weights, valid, bias, causal):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, jnp.repeat(k, HEADS // SHARED, 2)) * DIM**-0.5 + bias[:, None, None]
    sees = valid[:, None, None] & (jnp.tril(jnp.ones((N, N), bool)) if causal else True)
    peak = jax.nn.softmax(jnp.where(sees, logits, -jnp.inf), -1).max(1)
    return jnp.einsum("brm,br->bm", jnp.take_along_axis(peak, rows[..., None], 1), weights)


@pytest.mark.parametrize("block", [1, 4, 11, 32])
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_largest_over_heads_summed_over_rows(arrays, block, causal):
    q, k, rows, weights, valid = arrays
    bias = jnp.log(1.0 + jnp.arange(N) % 3)[None].repeat(B, 0)
    with jax.default_matmul_precision("highest"):
        got = peak_received(q, k, rows, weights, valid=valid, bias=bias, causal=causal, block=block)
        want = dense(q, k, rows, weights, valid, bias, causal)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert not np.asarray(got)[~np.asarray(valid)].any()


def test_rows_without_weight_or_keys_count_for_nothing(arrays):
    q, k, rows, weights, valid = arrays
    nothing = jnp.zeros_like(valid).at[:, 20].set(True)  # rows before slot 20 attend to no key
    got = peak_received(q, k, rows, jnp.where(rows < 20, 0, weights), valid=nothing, causal=True)
    want = jnp.where(rows < 20, 0, weights).sum(1)
    np.testing.assert_allclose(got[:, 20], want, rtol=1e-6)
    assert np.isfinite(got).all()


def test_no_array_holds_all_rows_of_all_heads(arrays):
    q, k, *_ = arrays
    rows = jnp.broadcast_to(jnp.arange(N), (B, N))
    jaxpr = jax.make_jaxpr(lambda q, k: peak_received(q, k, rows, rows * 1.0, valid=rows >= 0, block=4))(q, k)
    inner = [e.params["jaxpr"].jaxpr for e in jaxpr.eqns if e.primitive.name == "scan"]
    sizes = [v.aval.size for j in (jaxpr.jaxpr, *inner) for e in j.eqns for v in e.outvars]
    assert len(inner) == 1 and max(sizes) < B * HEADS * N * N
