"""ATS: how many tokens it samples, in both of its codes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.errors import UserError
from jtok.methods.vit.ats import ATS, grid
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.methods import catalogue as c


@pytest.mark.parametrize("samples", [3, 7, 12, 14, 19, 27, 34])
def test_rounding_includes_the_end_of_some_grids(samples):
    assert len(grid(samples)) == samples
    assert grid(samples)[-1] == pytest.approx((2 * samples - 1) / (2 * samples))


@pytest.mark.parametrize("samples", [177, 159, 143, 138, 97, 68, 99, 50, 25])
def test_other_grids_exclude_it(samples):
    assert len(grid(samples)) == samples - 1


def sampled(reducer: ATS, attention: np.ndarray):
    """Tokens after sampling when all values are of equal length; attention [N] over the class token and patches."""
    n = len(attention)
    x = jnp.arange(n, dtype=jnp.float32)[None, :, None]
    signals = Signals(class_attention=jnp.asarray(attention)[None, None], values=jnp.ones((1, n, 1, 2)))
    return jax.jit(lambda t, s: reducer(t, s, {})[0])(from_features(x, (n - 1,), 1), signals)


@pytest.mark.parametrize("variant", ["simple", "official"])
def test_peaked_attention_needs_fewer_tokens(variant):
    reducer = ATS(9, variant)
    even = np.full(21, 0.05, np.float32)
    peaked = np.full(21, 0.001, np.float32)
    peaked[7] = 0.98
    from_even, from_peaked = sampled(reducer, even), sampled(reducer, peaked)
    assert from_even.patches == from_peaked.patches == reducer.count(20)
    assert from_even.mask()[0, 1:].sum() >= 8
    assert from_peaked.mask()[0, 1:].sum() <= 3
    assert 7 in np.asarray(from_peaked.x[0, :, 0]), "the token that takes it all is sampled"
    live = np.asarray(from_peaked.mask())[0]
    assert not np.asarray(from_peaked.x)[0, ~live].any() and not np.asarray(from_peaked.size)[0, ~live].any()


def test_survivors_of_the_official_code_are_ordered_by_score():
    attention = np.random.default_rng(0).dirichlet(np.ones(21)).astype(np.float32)
    out = sampled(ATS(20, "official"), attention)
    ids = np.asarray(out.x)[0, 1:, 0].astype(int)[np.asarray(out.mask())[0, 1:]]
    assert len(ids) > 3 and (np.diff(attention[ids]) > 0).all()
    assert ids[-1] == attention[1:].argmax() + 1
    assert attention[1:].argmin() + 1 not in ids


def test_a_single_patch_causes_no_division_by_zero():
    for variant in ("simple", "official"):
        assert np.isfinite(sampled(ATS(2, variant), np.array([0.5, 0.5], np.float32)).x).all()


def test_plans():
    official = c.plan("ats", 1.0, variant="official")
    assert [out for _, _, out in official.counts(36)] == [36, 36, 36]
    assert list(map(str, official.sites)) == [f"tower.block.{i}.after_attention" for i in (1, 2, 3)]
    with pytest.raises(UserError, match="no variant"):
        c.plan("ats", 0.5, variant="port")
