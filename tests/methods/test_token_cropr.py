"""Token Cropr: fusion restores what was dropped, and auxiliary heads send no gradient to the tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.errors import UserError
from jtok.methods.catalogue import make_plan
from jtok.target import Target
from tests.methods import catalogue as c


def test_each_module_drops_r_and_fusion_restores_all():
    outs = [out for _, _, out in c.plan("token-cropr", r=(6, 5)).counts(36)]
    assert outs == [30, 25, 36]
    outs = [out for _, _, out in c.plan("token-cropr", r=(6, 5, 5), fusion=False).counts(36)]
    assert outs == [30, 25, 20]


def test_fusion_gives_every_patch_its_own_place():
    plan = c.plan("token-cropr", 0.4)
    t = jax.jit(lambda x: c.tower()(x, plan))(c.images()).tokens
    owner = np.asarray(t.owner)
    assert all(len(set(row)) == 36 and row.min() == 1 for row in owner)
    held = np.take_along_axis(np.asarray(t.position), owner[..., None], 1)
    raster = np.stack(np.divmod(np.arange(36), 6), -1)
    np.testing.assert_array_equal(held, np.broadcast_to(raster, held.shape))
    assert (owner[0] != np.arange(1, 37)).any(), "survivors are in score order"


def test_auxiliary_heads_teach_the_queries_but_not_the_tower():
    plan = c.plan("token-cropr", 0.5)
    graphdef, state = nnx.split(c.tower())

    def loss(state, params, x):
        current = plan.with_params(params)
        out = nnx.merge(graphdef, state)(x, current, train=True)
        return current.training.objective(current, out, None, {"label": jnp.array([0, 1, 2])})["auxiliary"]

    tower, learned = jax.jit(jax.grad(loss, (0, 1)))(state, plan.params(), c.images())
    assert not any(np.any(g) for g in jax.tree.leaves(tower))
    assert all(np.any(site["attention"]["queries"]) for site in learned.values())


def test_inference_runs_no_auxiliary_head():
    reducer, t = c.first_reducer("token-cropr", 0.5), c.tokens()
    _, memory = reducer(t, c.signals(reducer, t), {})
    assert memory["token-cropr"]["logits"] == ()


def test_bad_requests_are_refused():
    with pytest.raises(UserError, match="leaves none"):
        c.plan("token-cropr", r=18)
    with pytest.raises(UserError, match="at least 3 blocks"):
        make_plan("token-cropr", Target(2, (4, 4), 8))
    reducer, t = make_plan("token-cropr", Target(3, (6, 6), 16)).at("tower.block.0.output"), c.tokens()
    with pytest.raises(UserError, match="classes"):
        reducer(t, c.signals(reducer, t, train=True), {})
