"""FoPru has no reference code: what its two strategies must keep, on constructed attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import UserError
from jtok.methods.vlm.fopru import FoPru, FoPruRows, plan
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import from_features

ROWS, COLUMNS = 4, 6
X = jax.random.normal(jax.random.key(0), (2, 1 + ROWS * COLUMNS, 8))
TOKENS = from_features(X, (ROWS, COLUMNS), 1)
RECEIVED = jax.random.uniform(jax.random.key(1), X.shape[:2]).at[:, 0].set(99.0)  # the class token receives most
TARGET = Target(depth=4, grid=(ROWS, COLUMNS), width=8)


def kept(reducer, tokens=TOKENS, **signals):
    """Which patches [2,24] are left, and the tokens."""
    out, _ = reducer(tokens, Signals(**signals), {})
    return np.asarray(out.owner) >= 0, out


def test_rank_keeps_the_most_attended_patches_in_order():
    remaining, out = kept(FoPru(7), attention_received=RECEIVED)
    scores = np.asarray(RECEIVED)[:, 1:]
    for row in range(2):
        np.testing.assert_array_equal(np.flatnonzero(remaining[row]), np.sort(np.argsort(-scores[row])[:7]))
        np.testing.assert_array_equal(out.x[row, 1:], X[row, 1:][remaining[row]])
    assert out.valid is None and out.count == 8


def test_row_keeps_whole_rows_of_the_largest_sum():
    remaining, out = kept(FoPruRows(2, COLUMNS), attention_received=RECEIVED)
    sums = np.asarray(RECEIVED)[:, 1:].reshape(2, ROWS, COLUMNS).sum(2)
    for row in range(2):
        best = np.argsort(-sums[row])[:2]
        whole = np.repeat(np.isin(np.arange(ROWS), best), COLUMNS)
        np.testing.assert_array_equal(remaining[row], whole)
        np.testing.assert_array_equal(out.x[row, 1:], X[row, 1:][remaining[row]])
    assert out.valid is None and out.count == 1 + 2 * COLUMNS


def test_a_row_that_lost_patches_is_filled_with_padding():
    gone = jnp.ones(25, bool).at[jnp.asarray([3, 4, 9])].set(False)  # of the first two rows of the grid
    tokens = TOKENS.replace(valid=jnp.broadcast_to(gone, X.shape[:2]))
    scores = jnp.where(jnp.arange(25) <= 12, 5.0, 0.1)  # these two rows are the best all the same
    remaining, out = kept(FoPruRows(2, COLUMNS), tokens, attention_received=jnp.broadcast_to(scores, X.shape[:2]))
    assert (out.mask().sum(1) == 1 + 12 - 3).all() and out.count == 1 + 12
    assert not remaining[:, 12:].any() and not remaining[:, [2, 3, 8]].any()


def test_the_class_token_can_be_the_only_query():
    attention = jax.nn.softmax(jax.random.normal(jax.random.key(2), (2, 3, 25)))
    remaining, _ = kept(FoPru(5, "class"), class_attention=attention)
    best = np.argsort(-np.asarray(attention.mean(1))[:, 1:], 1)[:, :5]
    np.testing.assert_array_equal(remaining, [np.isin(np.arange(24), row) for row in best])


@pytest.mark.parametrize(
    ("how", "count"),
    [({"keep": 0.25}, 6), ({"tokens": 13}, 12), ({"tokens": 3}, 6), ({"keep": 0.05}, 6), ({"keep": 0.8}, 18)],
)
def test_as_many_rows_as_fit_are_kept_and_at_least_one(how, count):
    assert plan(TARGET, strategy="row", **how).counts(24)[-1][2] == count


def test_other_values_are_refused():
    for options in ({"strategy": "column"}, {"query": "last"}):
        with pytest.raises(UserError, match="fopru has no"):
            plan(TARGET, **options)
