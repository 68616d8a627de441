"""PatchMerger: weights over the patches, and who owns what."""

from __future__ import annotations

import numpy as np

from jtok.signals import Signals
from tests.methods import catalogue as c


def test_rows_sum_to_one_and_padding_is_ignored():
    reducer = c.first_reducer("patchmerger", 0.5)
    t = c.tokens(valid=c.tokens().mask().at[:, 30:].set(False))
    weights, _ = reducer.weights(t.split()[1])
    np.testing.assert_allclose(weights.sum(2), 1, atol=1e-6)
    assert not weights[:, :, 29:].any()


def test_a_patch_belongs_to_the_query_that_takes_most_of_it():
    reducer, t = c.first_reducer("patchmerger", 0.5), c.tokens()
    weights, _ = reducer.weights(t.split()[1])
    out, _ = reducer(t, Signals(), {})
    np.testing.assert_array_equal(out.owner, 1 + np.asarray(weights).argmax(1))
    np.testing.assert_allclose(out.size[:, 1:].sum(1), 36, rtol=1e-5)


def test_one_stage_is_placed_after_half_of_the_blocks():
    plan = c.plan("patchmerger", 0.25, stages=1, scaled=True)
    assert plan.counts(36) == [("tower.block.2.input", 36, 9)]
    assert plan.at("tower.block.2.input").scale == 16**-0.5
