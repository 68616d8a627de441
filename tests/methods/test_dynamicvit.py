"""DynamicViT: soft in training, hard at inference, and both the same."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from jtok.methods import catalogue
from jtok.methods.vit import dynamicvit
from jtok.slots import Training
from jtok.target import Target
from tests.methods import catalogue as c


def test_counts_are_shares_of_the_initial_patches():
    plan = catalogue.make_plan("dynamicvit", Target(12, (14, 14), 8), rates=(0.7, 0.7**2, 0.7**3))
    assert [out for _, _, out in plan.counts(196)] == [137, 96, 67]


@pytest.mark.usefixtures("highest_precision")
def test_masking_and_gathering_agree():
    """With decisions far beyond the reach of the noise, the masked pass and the gathered one see the same patches.

    They differ by the eps/N that the masked softmax adds to every key, 1e-6 relative in each of three layers: about
    1e-5 on logits of order ten. Ten times that is allowed.
    """
    tower, image = c.tower(), c.images()[:1]
    plan = dynamicvit.plan(c.CONFIG.target(), 0.5, rngs=nnx.Rngs(5))  # a draw that keeps 33, 12 and 12 of 36
    params = plan.params()
    for site in params:
        params[site]["predictor"]["out"]["kernel"] = params[site]["predictor"]["out"]["kernel"] * 1e6
    plan = plan.with_params(params)
    soft = jax.jit(lambda x: tower(x, plan, train=True))(image)
    shares = np.stack(soft.memory["dynamicvit"])[:, 0]
    kept = np.round(shares * 36).astype(int)
    assert 0 < kept[-1] < kept[0] < 36, "the draw must drop patches at two stages at least"
    for reducer, count in zip(plan.sites.values(), kept, strict=True):
        reducer.keep = int(count)
    hard = jax.jit(lambda x: tower(x, plan))(image)
    assert hard.tokens.patches == kept[-1]
    np.testing.assert_array_equal(np.asarray(hard.tokens.owner) >= 0, np.asarray(soft.tokens.owner) >= 0)
    np.testing.assert_allclose(soft.logits, hard.logits, atol=1e-4)
    unreduced = jax.jit(lambda x: tower(x))(image)
    assert np.abs(unreduced.logits - hard.logits).max() > 1e-2, "dropping must matter, or the test shows nothing"


def test_decisions_are_nested_and_differ_between_images():
    plan = dataclasses.replace(c.plan("dynamicvit", 0.5), training=Training())
    out = jax.jit(lambda x: c.tower()(x, plan, key=jax.random.key(4), train=True))(c.images())
    shares = np.stack(out.memory["dynamicvit"])
    assert shares.shape == (3, c.BATCH) and (np.diff(shares, axis=0) <= 0).all()
    policy = np.asarray(out.tokens.policy)
    assert set(np.unique(policy)) == {0.0, 1.0} and (policy[:, 0] == 1).all()
    np.testing.assert_allclose(policy[:, 1:].mean(1), shares[-1], rtol=1e-6)
    assert (policy[0] != policy[1]).any()
