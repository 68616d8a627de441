"""Properties that every method must have, over the whole catalogue: a new method is covered the day it is added."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.plan import Plan
from jtok.reducer import Compose
from jtok.wrappers import Windowed
from tests.methods import catalogue as c

KEEPS = (0.7, 0.35)
pytestmark = pytest.mark.usefixtures("highest_precision")


def forward(plan: Plan):
    """Jitted (model, images) -> output, and the parameters to call it with."""
    graphdef, state = nnx.split(c.tower())
    return jax.jit(lambda s, x: nnx.merge(graphdef, s)(x, plan, given=c.given())), state


@pytest.fixture(scope="module", params=[(m, k) for m in c.METHODS for k in KEEPS], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request):
    """(method entry, plan, jitted forward, state, output) of one method at one ratio; compiled once for all tests."""
    name, keep = request.param
    plan = c.plan(name, keep)
    f, state = forward(plan)
    with jax.default_matmul_precision("highest"):  # as in the tests, or they would compile it again
        out = f(state, c.images())
    return catalogue.find(name), plan, f, state, out


def test_counts_are_as_planned(case):
    _, plan, _, _, out = case
    counts = plan.counts(36)
    assert counts, "a plan at a ratio below one must reduce somewhere"
    assert out.tokens.patches == counts[-1][2]
    assert all(o <= i or not plan.sites for _, i, o in counts[:1])


def test_rows_are_independent(case):
    _, _, f, state, out = case
    others = c.images().at[1:].set(jax.random.normal(jax.random.key(9), c.images()[1:].shape))
    got = f(state, others)
    np.testing.assert_allclose(got.logits[0], out.logits[0], atol=1e-5)
    np.testing.assert_array_equal(got.tokens.owner[0], out.tokens.owner[0])


def test_owner_map_is_consistent(case):
    entry, plan, _, _, out = case
    t = out.tokens
    owner, live = np.asarray(t.owner), np.asarray(t.mask())
    assert owner.min() >= -1 and owner.max() < t.count
    assert ((owner == -1) | (owner >= t.special)).all(), "special tokens own no patches"
    assert np.take_along_axis(live, np.maximum(owner, 0), 1)[owner >= 0].all(), "an owner is a live token"
    if entry.assignment == "hard":
        np.testing.assert_allclose((np.asarray(t.size) * live)[:, t.special :].sum(1), owner.shape[1], rtol=1e-5)
        held = np.stack([np.bincount(row[row >= 0], minlength=t.count) for row in owner])
        np.testing.assert_allclose(held[:, t.special :], (np.asarray(t.size) * live)[:, t.special :], rtol=1e-5)
    if entry.assignment == "none" and plan.grid is None:
        held = np.stack([np.bincount(row[row >= 0], minlength=t.count) for row in owner])
        assert (held[:, t.special :][live[:, t.special :]] == 1).all(), "a kept token holds its own patch"


def reducer_of(name: str, keep: float = 0.5, grid=(6, 6)):
    reducer = c.first_reducer(name, keep, grid)
    if reducer is None:
        pytest.skip("placed before the tower, not in it")
    return reducer


@pytest.mark.parametrize("name", c.METHODS)
def test_jit_and_batch_of_one_change_nothing(name):
    reducer = reducer_of(name)
    t = c.tokens()
    s = c.signals(reducer, t)
    out = jax.jit(lambda t, s: reducer(t, s, {})[0])(t, s)
    plain, _ = reducer(t, s, {})
    one, _ = reducer(*jax.tree.map(lambda a: a[1:2], (t, s)), {})
    for got, want in ((plain, out), (one, jax.tree.map(lambda a: a[1:2], out))):
        np.testing.assert_allclose(got.x, want.x, atol=2e-5)
        np.testing.assert_allclose(got.size, want.size, atol=2e-5)
        np.testing.assert_array_equal(got.owner, want.owner)


@pytest.mark.parametrize("name", c.METHODS)
def test_special_tokens_stay_and_padding_is_inert(name):
    reducer = reducer_of(name)
    valid = jnp.ones((c.BATCH, 37), bool).at[:, 33:].set(False)
    t = c.tokens(valid=valid)
    s = c.signals(reducer, t)
    run = jax.jit(lambda t, s: reducer(t, s, {})[0])
    out = run(t, s)
    np.testing.assert_array_equal(out.x[:, :1], t.x[:, :1])
    assert out.special == 1
    noise = jnp.where(valid[..., None], 0.0, 7.0)
    rows = {k: v + noise[..., None] if v.ndim == 4 else v for k, v in s.per_token().items()}  # keys, not attention
    other = run(t.replace(x=t.x + noise), s.with_per_token(rows))
    live = np.asarray(out.mask())
    np.testing.assert_array_equal(live, other.mask())
    np.testing.assert_allclose(np.asarray(out.x)[live], np.asarray(other.x)[live], atol=1e-5)
    assert np.isfinite(np.asarray(out.x)[live]).all()


@pytest.mark.parametrize("name", c.METHODS)
def test_order_of_patches_does_not_matter(name):
    if catalogue.find(name).uses_position:
        pytest.skip("declares that places matter")
    reducer = reducer_of(name)
    t = c.tokens()
    s = c.signals(reducer, t)
    run = jax.jit(lambda t, s: reducer(t, s, {})[0].x)
    moved = c.permute(t, s, np.random.default_rng(0).permutation(36))
    probe = jax.random.normal(jax.random.key(5), (c.CONFIG.width,))
    np.testing.assert_allclose(jnp.sort(run(*moved) @ probe, 1), jnp.sort(run(t, s) @ probe, 1), atol=1e-4)


@pytest.mark.parametrize("name", c.METHODS)
def test_gradients_are_finite(name):
    plan = c.plan(name, 0.5)
    graphdef, state = nnx.split(c.tower())

    def loss(state, plan_params, x):
        out = nnx.merge(graphdef, state)(x, plan.with_params(plan_params), train=True, given=c.given())
        return (out.logits**2).sum()

    grads = jax.jit(jax.grad(loss, (0, 1)))(state, plan.params(), c.images())
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert any((np.asarray(g) != 0).any() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", c.METHODS)
def test_composes_with_another_reducer(name):
    reducer = reducer_of(name, 0.7)
    both = Compose(reducer, c.first_reducer("topk", 0.3))
    t = c.tokens()
    out, _ = jax.jit(lambda t, s: both(t, s, {}))(t, c.signals(both, t))
    assert out.patches == both.count(36) < reducer.count(36)
    owner = np.asarray(out.owner)
    assert owner.max() < out.count and ((owner == -1) | (owner >= 1)).all()


@pytest.mark.parametrize("name", c.METHODS)
def test_works_in_windows(name):
    reducer = reducer_of(name, 0.5, (3, 3))
    windows = Windowed(reducer, (3, 3))
    t = c.tokens()
    s = c.signals(windows, t)
    try:
        out, _ = jax.jit(lambda t, s: windows(t, s, {}))(t, s)
    except UserError as error:
        assert "memory" in str(error)
        return
    assert out.patches == windows.count(36) == 4 * reducer.count(9)
    owner, raster = np.asarray(out.owner), np.arange(36)
    window = raster // 18 * 2 + raster % 6 // 3
    kept = owner >= 0
    slot_window = (owner - 1) // reducer.count(9)
    assert (slot_window == window)[kept].all(), "a patch stays in its window"
