"""AvisC's masks and logits on arrays; the streams of a model are tested in tests/models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.methods.decoding.avisc import Calibrate
from jtok.tokens import from_features

KEYS = jax.random.split(jax.random.key(0), 3)
VALID = jnp.arange(12) < jnp.asarray([12, 8, 10])[:, None]
TOKENS = from_features(jax.random.normal(jax.random.key(1), (3, 12, 4)), (3, 4), 0, VALID)
ATTENTION = jax.random.uniform(jax.random.key(2), (5, 3, 12)) ** 3


@pytest.mark.parametrize("scheme", ["zeros", "ones", "noise"])
def test_tokens_that_are_not_blind_are_masked(scheme):
    rule = Calibrate(scheme=scheme)
    masked = np.asarray(rule.masked(ATTENTION, VALID))
    x = np.asarray(rule.second_stream(TOKENS, ATTENTION, KEYS).x)
    np.testing.assert_array_equal(x[~masked], np.asarray(TOKENS.x)[~masked])
    assert (~masked & np.asarray(VALID)).any() and masked.any()
    if scheme == "noise":
        assert abs(x[masked].mean()) < 0.5 and 0.5 < x[masked].std() < 1.5
        alone = rule.second_stream(jax.tree.map(lambda a: a[1:2], TOKENS), ATTENTION[:, 1:2], KEYS[1:2]).x
        np.testing.assert_allclose(alone[0], x[1], atol=1e-6)
    else:
        assert (x[masked] == (scheme == "ones")).all()


def test_padding_is_ignored():
    rule = Calibrate(lamb=0.2)
    masked = rule.masked(jnp.where(VALID, ATTENTION, 9.0), VALID)
    np.testing.assert_array_equal(masked[1, :8], rule.masked(ATTENTION[:, 1:2, :8], VALID[1:2, :8])[0])
    assert not masked[1, 8:].any()


def test_unlikely_tokens_are_excluded_and_nan_is_ignored():
    logits = jnp.asarray([[2.0, 1.5, -3.0], [2.0, 1.5, -3.0]])
    second = jnp.asarray([[2.0, 0.5, 0.0], [jnp.nan, 0.5, 0.0]])
    out = Calibrate(alpha=1.0, beta=0.1)(logits, second)
    np.testing.assert_allclose(out, [[2.0, 2.5, -np.inf], [2.0, 1.5, -np.inf]], atol=1e-6)
