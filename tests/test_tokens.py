"""Token sets: everything that belongs to a token follows it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import UserError
from jtok.tokens import Tokens, from_features


def make(special: int = 1, valid=None) -> Tokens:
    """Two images of 3 x 4 patches whose features tell who they are: image * 100 + slot."""
    n = special + 12
    x = jnp.arange(n, dtype=jnp.float32)[None, :, None] + 100.0 * jnp.arange(2)[:, None, None]
    t = from_features(jnp.broadcast_to(x, (2, n, 3)), (3, 4), special, valid)
    return t.replace(carry={"slot": t.x[..., 0]})


def test_split_and_concat_are_inverse():
    t = make(special=2)
    head, body = t.split()
    back = head.concat(body)
    assert (head.special, body.special, back.special) == (2, 0, 2)
    for a, b in zip(jax.tree.leaves(t), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(a, b)


def test_take_follows_index():
    t = make()
    index = jnp.array([[0, 5, 2], [0, 12, 1]])
    got = t.take(index)
    np.testing.assert_array_equal(got.x[..., 0], got.carry["slot"])
    np.testing.assert_array_equal(got.x[1, :, 0], [100, 112, 101])
    np.testing.assert_array_equal(np.flatnonzero(got.owner[0] >= 0), [1, 4])  # patches of slots 2 and 5
    np.testing.assert_array_equal(got.owner[0, jnp.array([4, 1])], [1, 2])
    np.testing.assert_array_equal(got.position[0, 1], [1, 0])


def test_take_with_padding():
    t = make()
    got = t.take(jnp.array([[0, 5, 2]] * 2), keep=jnp.array([[True, True, False]] * 2))
    np.testing.assert_array_equal(got.mask(), [[True, True, False]] * 2)
    assert (got.x[:, 2] == 0).all() and (got.size[:, 2] == 0).all()
    assert (got.owner != 2).all()


def test_taking_more_than_there_are_is_refused():
    with pytest.raises(UserError, match="14 tokens out of 13"):
        make().take(jnp.zeros((2, 14), jnp.int32))


@pytest.mark.parametrize(
    ("how", "wanted"),
    [("size", (2 + 3 + 4) / 3), ("mean", (2 + 3 + 4) / 3), ("sum", 2 + 3 + 4), ("add_mean", 2 + 3.5)],
)
def test_absorb(how, wanted):
    t = make()
    kept, others = t.take(jnp.array([[0, 1, 2]] * 2)), t.take(jnp.array([[3, 4, 5]] * 2))
    got = kept.absorb(others, jnp.array([[2, 2, -1]] * 2), how)
    assert got.x[0, 2, 0] == pytest.approx(wanted)
    np.testing.assert_array_equal(got.size[0], [1, 1, 3])
    np.testing.assert_array_equal(got.owner[0, :5], [1, 2, 2, 2, -1])


def test_merge_is_a_weighted_mean_and_conserves_size():
    t = make(special=0)
    assign = jnp.array([[0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, -1]] * 2)
    got = t.merge(assign, 4)
    np.testing.assert_allclose(got.x[0, :, 0], [1, 4, 8, 0])
    np.testing.assert_array_equal(got.size[0], [3, 3, 5, 0])
    np.testing.assert_array_equal(got.owner[0], assign[0])
    twice = got.merge(jnp.array([[0, 1, 0, 1]] * 2), 2)
    np.testing.assert_allclose(twice.x[0, 0, 0], np.mean([0, 1, 2, 6, 7, 8, 9, 10]))
    np.testing.assert_array_equal(twice.owner[0], [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, -1])


def test_mix_with_hard_weights_is_a_merge():
    t = make(special=0)
    assign = jnp.arange(12)[None].repeat(2, 0) // 4
    hard = jax.nn.one_hot(assign, 3, axis=1)
    mixed, merged = t.mix(hard / hard.sum(-1, keepdims=True)), t.merge(assign, 3)
    for name in ("x", "size", "owner", "position"):
        np.testing.assert_allclose(getattr(mixed, name), getattr(merged, name), rtol=1e-6)


def test_unmerge_gives_every_patch_its_token():
    t = make(special=1)
    got = t.take(jnp.array([[0, 3, 4]] * 2)).absorb(t.take(jnp.array([[1, 2]] * 2)), jnp.array([[1, 2]] * 2))
    dense = got.unmerge()
    np.testing.assert_allclose(dense[0, :5, 0], [2, 3, 2, 3, 0])


def test_padding_owns_nothing_and_weighs_nothing():
    valid = jnp.ones((2, 12), bool).at[:, 10:].set(False)
    t = make(special=0, valid=valid)
    assert (t.owner[:, 10:] == -1).all()
    got = t.merge(jnp.zeros((2, 12), jnp.int32), 1)
    np.testing.assert_allclose(got.x[0, 0, 0], np.arange(10).mean())
    assert got.size[0, 0] == 10
