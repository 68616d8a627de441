"""Properties that every method must have, over the whole catalogue: a new method is covered the day it is added.

Compiling is what costs time here: three programs a method (its reducer on arrays, the tower with its plan, the tower
and its gradient), each called with many inputs of one shape.
"""

from __future__ import annotations

import functools

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

pytestmark = pytest.mark.usefixtures("highest_precision")

#: Methods that hand something from site to site, so that a part of theirs cannot work in windows of its own.
KEEP_MEMORY = {"expedit", "token-cropr", "vtc-cls"}


@functools.cache
def forward(name: str, keep: float = 0.35):
    """(plan, jitted (state, parameters of the plan, images, train) -> (loss, output), gradient of the same, state)."""
    plan = c.plan(name, keep)
    graphdef, state = nnx.split(c.tower())

    def run(state, learned, x, train):
        out = nnx.merge(graphdef, state)(x, plan.with_params(learned), train=train, given=c.given())
        return (out.logits**2).sum(), out

    grad = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True), static_argnums=3)
    return plan, jax.jit(run, static_argnums=3), grad, state


@pytest.fixture(scope="module", params=c.METHODS)
def case(request):
    """(entry, plan, images -> output, gradients) of one method; what is not learned comes out of the gradient's run."""
    plan, run, grad, state = forward(request.param)
    learned = plan.params()
    with jax.default_matmul_precision("highest"):  # as in the tests, or they would compile it again
        (_, out), grads = grad(state, learned, c.images(), bool(learned))
        if learned:  # a learned method leaves all tokens in training
            call = lambda x: run(state, learned, x, False)[1]  # noqa: E731
            out = call(c.images())
        else:
            call = lambda x: grad(state, learned, x, False)[0][1]  # noqa: E731
    return catalogue.find(request.param), plan, call, out, grads


def test_counts_are_as_planned(case):
    entry, plan, _, out, _ = case
    counts = plan.counts(36)
    assert counts, "a plan at a ratio below one must reduce somewhere"
    assert out.tokens.patches == counts[-1][2]
    assert all(o <= i or not plan.sites for _, i, o in counts[:1])
    if entry.default_keep is not None:  # another ratio need not be compiled to be counted
        other, run, _, state = forward(entry.name, 0.7)
        shaped = jax.eval_shape(lambda x: run(state, other.params(), x, False)[1], c.images())
        assert shaped.tokens.patches == other.counts(36)[-1][2] >= counts[-1][2]


def test_rows_do_not_see_each_other(case):
    _, _, call, out, _ = case
    others = c.images().at[1:].set(jax.random.normal(jax.random.key(9), c.images()[1:].shape))
    got = call(others)
    np.testing.assert_allclose(got.logits[0], out.logits[0], atol=1e-5)
    np.testing.assert_array_equal(got.tokens.owner[0], out.tokens.owner[0])


def test_owner_map_is_consistent(case):
    entry, plan, _, out, _ = case
    t = out.tokens
    owner, live = np.asarray(t.owner), np.asarray(t.mask())
    assert owner.min() >= -1 and owner.max() < t.count
    assert ((owner == -1) | (owner >= t.special)).all(), "special tokens own no patches"
    assert np.take_along_axis(live, np.maximum(owner, 0), 1)[owner >= 0].all(), "an owner is a live token"
    held = np.stack([np.bincount(row[row >= 0], minlength=t.count) for row in owner])
    if entry.assignment == "hard":
        np.testing.assert_allclose((np.asarray(t.size) * live)[:, t.special :].sum(1), owner.shape[1], rtol=1e-5)
        np.testing.assert_allclose(held[:, t.special :], (np.asarray(t.size) * live)[:, t.special :], rtol=1e-5)
    if entry.assignment == "none" and plan.grid is None:
        assert (held[:, t.special :][live[:, t.special :]] == 1).all(), "a kept token holds its own patch"


def test_gradients_are_finite_and_reach_what_learns(case):
    """The tower's first weights, before any site, and what a method has learned if no loss of its own trains it."""
    _, plan, _, _, (tower, learned) = case
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((tower, learned)))
    assert (np.asarray(tower["patch"]["kernel"][...]) != 0).any(), "the gradient passes through the reduction"
    if learned and plan.training.objective is None:
        assert all(any((np.asarray(g) != 0).any() for g in jax.tree.leaves(part)) for part in learned.values())


@functools.cache
def on_arrays(name: str):
    """(reducer of the first site at half of the patches, jitted (tokens, signals) -> tokens)."""
    reducer = c.first_reducer(name, 0.5)
    return reducer, None if reducer is None else jax.jit(lambda t, s: reducer(t, s, {})[0])


def arrays(name: str, masked: int = 0):
    """(reducer, jitted, tokens, signals); the last `masked` tokens are padding. Skips methods without a reducer."""
    reducer, run = on_arrays(name)
    if reducer is None:
        pytest.skip("acts before the tower, not in it")
    t = c.tokens(valid=jnp.broadcast_to(jnp.arange(37) < 37 - masked, (c.BATCH, 37)))
    return reducer, run, t, c.signals(reducer, t)


@pytest.mark.parametrize("name", c.METHODS)
def test_a_row_is_what_it_is_in_any_batch_and_alone(name):
    reducer, run, t, s = arrays(name)
    out = run(t, s)
    same = run(*jax.tree.map(lambda a: jnp.broadcast_to(a[1:2], a.shape), (t, s)))
    for row in range(c.BATCH):
        np.testing.assert_allclose(same.x[row], out.x[1], atol=2e-5)
        np.testing.assert_allclose(same.size[row], out.size[1], atol=2e-5)
        np.testing.assert_array_equal(same.owner[row], out.owner[1])
    alone = jax.eval_shape(run, *jax.tree.map(lambda a: a[1:2], (t, s)))
    assert alone.x.shape == (1, *out.x.shape[1:]) and alone.patches == reducer.count(36)


@pytest.mark.slow
@pytest.mark.parametrize("name", c.METHODS)
def test_jit_changes_nothing(name):
    """Outside of jit every operation is compiled by itself, which takes longer than all else here."""
    reducer, run, t, s = arrays(name)
    out, (plain, _) = run(t, s), reducer(t, s, {})
    np.testing.assert_allclose(plain.x, out.x, atol=2e-5)
    np.testing.assert_array_equal(plain.owner, out.owner)


@pytest.mark.parametrize("name", c.METHODS)
def test_special_tokens_stay_and_padding_is_inert(name):
    _, run, t, s = arrays(name, masked=4)
    valid, out = t.mask(), run(t, s)
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
    _, run, t, s = arrays(name)
    moved = c.permute(t, s, np.random.default_rng(0).permutation(36))
    probe = jax.random.normal(jax.random.key(5), (c.CONFIG.width,))
    np.testing.assert_allclose(
        jnp.sort(run(*moved).x @ probe, 1), jnp.sort(run(t, s).x @ probe, 1), atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize("name", c.METHODS)
def test_composes_with_another_reducer(name):
    reducer, _, t, _ = arrays(name)
    both = Compose(reducer, c.first_reducer("topk", 0.01))
    out = jax.jit(lambda t, s: both(t, s, {})[0])(t, c.signals(both, t))
    assert out.patches == both.count(36) < reducer.count(36)
    owner = np.asarray(out.owner)
    assert owner.max() < out.count and ((owner == -1) | (owner >= 1)).all()


@pytest.mark.parametrize("name", c.METHODS)
def test_works_in_windows(name):
    arrays(name)
    windows = Windowed(c.first_reducer(name, 0.5, (3, 3)), (3, 3))
    t = c.tokens()
    s = c.signals(windows, t)
    if name in KEEP_MEMORY:
        with pytest.raises(UserError, match="keeps memory across sites and cannot"):
            jax.eval_shape(lambda t, s: windows(t, s, {})[0], t, s)
        return
    out = jax.jit(lambda t, s: windows(t, s, {})[0])(t, s)
    assert out.patches == windows.count(36) == 4 * windows.reducer.count(9)
    owner, raster = np.asarray(out.owner), np.arange(36)
    window = raster // 18 * 2 + raster % 6 // 3
    kept = owner >= 0
    slot_window = (owner - 1) // windows.reducer.count(9)
    assert (slot_window == window)[kept].all(), "a patch stays in its window"


def test_the_unreduced_tower_is_the_plan_without_anything():
    x = c.images()
    np.testing.assert_array_equal(c.tower()(x).logits, c.tower()(x, Plan()).logits)
