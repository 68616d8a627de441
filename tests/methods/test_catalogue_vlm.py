"""Properties of methods placed in a language model or at its projector, over the whole catalogue.

All sites of a method run one after the other on visual tokens and signals at random; what the real model gives them is
tested in tests/models.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.target import Target
from tests.methods import catalogue as c

pytestmark = pytest.mark.usefixtures("highest_precision")
TARGET = Target(c.CONFIG.depth, (6, 6), c.CONFIG.width, c.CONFIG.heads, 1, layers=8, language_width=c.CONFIG.width)
REDUCERS = c.LANGUAGE + [n for n in c.PROJECTORS if catalogue.make_plan(n, TARGET, 0.5).sites]
MODULES = [n for n in c.PROJECTORS if catalogue.make_plan(n, TARGET, 0.5).projector is not None]


@functools.cache
def forward(name: str, keep: float = 0.5):
    """(the method's reducers as one, jitted (tokens, signals) -> tokens)."""
    reducer = c.chain(name, keep)
    return reducer, jax.jit(lambda t, s: reducer(t, s, {})[0])


def case(name: str, valid: jax.Array | None = None):
    """(reducer, jitted, tokens, signals) at half of 36 visual tokens."""
    reducer, run = forward(name)
    t = c.tokens(special=0, valid=valid)
    return reducer, run, t, c.signals(reducer, t)


@pytest.mark.parametrize("keep", [0.7, 0.5, 0.35])
@pytest.mark.parametrize("name", REDUCERS)
def test_counts_are_as_planned(name, keep):
    reducer, run = forward(name, keep)
    t = c.tokens(special=0)
    counts = catalogue.make_plan(name, TARGET, keep).counts(36)
    assert run(t, c.signals(reducer, t)).count == reducer.count(36) == counts[-1][2]
    if name in c.LANGUAGE:  # projectors may have few counts to choose from
        assert abs(counts[-1][2] - keep * 36) <= 4, "about the share that was asked for is left"


@pytest.mark.parametrize("name", REDUCERS)
def test_a_row_is_what_it_is_in_any_batch_and_alone(name):
    reducer, run, t, s = case(name)
    out = run(t, s)
    same = run(*jax.tree.map(lambda a: jnp.broadcast_to(a[1:2], a.shape), (t, s)))
    for row in range(c.BATCH):
        np.testing.assert_allclose(same.x[row], out.x[1], atol=2e-5)
        np.testing.assert_allclose(same.size[row], out.size[1], atol=2e-5)
        np.testing.assert_array_equal(same.owner[row], out.owner[1])
    alone = jax.eval_shape(run, *jax.tree.map(lambda a: a[1:2], (t, s)))
    assert alone.x.shape == (1, *out.x.shape[1:]) and alone.count == reducer.count(36)


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCERS)
def test_jit_changes_nothing(name):
    """Outside of jit every operation is compiled by itself, which takes longer than all else here."""
    reducer, run, t, s = case(name)
    out, (plain, _) = run(t, s), reducer(t, s, {})
    np.testing.assert_allclose(plain.x, out.x, atol=2e-5)
    np.testing.assert_allclose(plain.size, out.size, atol=2e-5)
    np.testing.assert_array_equal(plain.owner, out.owner)


@pytest.mark.parametrize("name", REDUCERS)
def test_rows_are_independent(name):
    reducer, run, t, s = case(name)
    others = t.replace(x=t.x.at[1:].add(1.0)), c.signals(reducer, t, seed=8)
    first = jax.tree.map(lambda a, b: a.at[0].set(b[0]), others[1].replace(key=None), s.replace(key=None))
    got, want = run(others[0], first.replace(key=s.key)), run(t, s)
    np.testing.assert_allclose(got.x[0], want.x[0], atol=1e-5)
    np.testing.assert_array_equal(got.owner[0], want.owner[0])


@pytest.mark.parametrize("name", REDUCERS)
def test_owner_map_is_consistent(name):
    _, run, t, s = case(name)
    out = run(t, s)
    owner, live = np.asarray(out.owner), np.asarray(out.mask())
    assert owner.min() >= -1 and owner.max() < out.count
    assert np.take_along_axis(live, np.maximum(owner, 0), 1)[owner >= 0].all(), "an owner is a live token"
    held = np.stack([np.bincount(row[row >= 0], minlength=out.count) for row in owner])
    assignment = catalogue.find(name).assignment
    if assignment != "soft":
        np.testing.assert_allclose(held[live], np.asarray(out.size)[live], rtol=1e-5)
    if assignment == "none":
        assert (held[live] == 1).all(), "a kept token holds its own patch"


@pytest.mark.parametrize("name", REDUCERS)
def test_padding_is_inert(name):
    """Padding of the visual tokens (rows of fewer crops) and of the question."""
    valid = jnp.arange(36) < jnp.asarray([36, 27, 30])[:, None]
    _, run, t, s = case(name, valid)
    out = run(t, s)
    noise = jnp.where(valid[..., None], 0.0, 7.0)
    other = run(t.replace(x=t.x + noise), c.disturbed(s, valid))
    live = np.asarray(out.mask())
    np.testing.assert_array_equal(live, other.mask())
    np.testing.assert_allclose(np.asarray(out.x)[live], np.asarray(other.x)[live], atol=1e-5)
    assert np.isfinite(np.asarray(out.x)[live]).all() and live.any(1).all()
    owner = np.asarray(out.owner)
    assert (owner[~np.asarray(valid)] == -1).all(), "padding holds no patch"


@pytest.mark.parametrize("name", c.LANGUAGE)
def test_a_row_keeps_its_share_in_any_batch(name):
    """A row with fewer visual tokens than the batch has slots is reduced as it would be without the empty slots."""
    reducer, run = forward(name)
    full = c.tokens(special=0)
    s = c.signals(reducer, full)
    prefix = jnp.broadcast_to(jnp.arange(24, dtype=jnp.int32), (c.BATCH, 24))
    rows = {k: v[:, :24] for k, v in s.per_token().items()}
    alone = run(full.take(prefix), s.with_per_token(rows))
    valid = jnp.broadcast_to(jnp.arange(36) < 24, (c.BATCH, 36))
    masked = {k: jnp.where(valid.reshape(c.BATCH, 36, *[1] * (v.ndim - 2)), v, 0) for k, v in s.per_token().items()}
    padded = run(c.tokens(special=0, valid=valid), s.with_per_token(masked))
    for row in range(c.BATCH):
        live = np.asarray(padded.mask()[row])
        np.testing.assert_allclose(padded.x[row][live], alone.x[row][alone.mask()[row]], atol=1e-5)


@pytest.mark.parametrize("name", REDUCERS)
def test_order_of_patches_does_not_matter(name):
    if catalogue.find(name).uses_position:
        pytest.skip("declares that places matter")
    _, run, t, s = case(name)
    moved = run(*c.permute(t, s, np.random.default_rng(0).permutation(36)))
    probe = jax.random.normal(jax.random.key(5), (c.CONFIG.width,))
    np.testing.assert_allclose(jnp.sort(moved.x @ probe, 1), jnp.sort(run(t, s).x @ probe, 1), atol=1e-4)


@pytest.mark.parametrize("name", REDUCERS)
def test_gradients_are_finite(name):
    reducer, _, t, s = case(name)
    floats = {k: v for k in reducer.reads if jnp.issubdtype((v := getattr(s, k)).dtype, jnp.floating)}
    loss = jax.jit(jax.grad(lambda x, f: (reducer(t.replace(x=x), s.replace(**f), {})[0].x ** 2).sum(), (0, 1)))
    grads = loss(t.x, floats)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert (np.asarray(grads[0]) != 0).any()


@pytest.mark.parametrize("name", c.LANGUAGE)
def test_a_tower_alone_is_refused(name):
    with pytest.raises(UserError, match=f"{name} is placed in a language model"):
        catalogue.make_plan(name, c.CONFIG.target(), 0.5)


@pytest.mark.parametrize("name", MODULES)
def test_projectors(name):
    plan = catalogue.make_plan(name, TARGET, 0.5)
    projector, count = plan.projector, plan.projector_count
    t = c.tokens(special=0)
    taps = [t.x * (1 + i) for i, _ in enumerate(getattr(projector, "layers_read", ()))]
    run = jax.jit(lambda t, taps: projector(t, taps, count))
    out = run(t, taps)
    same = run(*jax.tree.map(lambda a: jnp.broadcast_to(a[1:2], a.shape), (t, taps)))
    np.testing.assert_allclose(same.x, jnp.broadcast_to(out.x[1:2], out.x.shape), atol=2e-5)
    np.testing.assert_array_equal(same.owner[0], out.owner[1])
    assert count is None or out.count == count
    assert out.owner.min() >= -1 and out.owner.max() < out.count
    grad = jax.jit(jax.grad(lambda x: (projector(t.replace(x=x), taps, count).x ** 2).sum()))(t.x)
    assert np.isfinite(grad).all() and (np.asarray(grad) != 0).any()
