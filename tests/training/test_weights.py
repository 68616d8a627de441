"""Learned reducers go out to a file and come back the same, scalars included."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jtok.errors import UserError
from jtok.training.weights import load_reducer, save_reducer
from tests.methods import catalogue as c


@pytest.mark.parametrize("name", ["sit", "dynamicvit", "token-cropr", "patchmerger", "sinkhorn", "dpc-knn"])
def test_reducers_survive_a_file(name, tmp_path):
    plan = c.plan(name, 0.5)
    params = jax.tree.map(lambda a: a + 1.5, plan.params())
    save_reducer(tmp_path / "r.safetensors", params)
    back = load_reducer(tmp_path / "r.safetensors", plan)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def test_files_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "r.safetensors"
    save_reducer(path, c.plan("sit", 0.5).params())
    with pytest.raises(UserError, match="has shape"):
        load_reducer(path, c.plan("sit", 0.25))
    with pytest.raises(UserError, match="lacks"):
        load_reducer(path, c.plan("patchmerger", 0.5))
    with pytest.raises(UserError, match="nothing to learn"):
        load_reducer(path, c.plan("tome", 0.5))
