"""The losses of methods that bring their own, through the classification task that trains them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.training.state import named_leaves
from jtok.training.tasks.classify import Classify, default_config

TERMS = {
    "dynamicvit": {"ratio", "distill", "features"},
    "sit": {"recalibration", "distill"},
    "token-cropr": {"auxiliary"},
}


def make_task(method: str, freeze: bool = False) -> Classify:
    config = default_config()
    config.model.fields = {"image": 16, "patch": 4, "width": 16, "depth": 4, "heads": 2, "mlp": 16, "classes": 3}
    config.plan.method, config.plan.keep, config.freeze_model = method, 0.5, freeze
    return Classify(config)


@pytest.mark.parametrize("method", TERMS)
def test_every_learned_parameter_gets_a_finite_gradient(method):
    task = make_task(method)
    params = task.init(jax.random.key(0))
    kernel = params["model"]["head"]["kernel"]
    params["model"]["head"]["kernel"] = jax.random.normal(jax.random.key(1), kernel.shape)
    batch = {
        "image": jax.random.randint(jax.random.key(2), (4, 16, 16, 3), 0, 256, jnp.uint8),
        "label": jnp.array([0, 1, 2, 0]),
    }
    loss = jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch, jax.random.key(3), 0), has_aux=True))
    (value, logged), grads = loss(params)
    assert set(logged) == {"cross_entropy", "accuracy"} | TERMS[method]
    np.testing.assert_allclose(value, sum(logged[k] for k in logged if k != "accuracy"), rtol=1e-5)
    assert all(logged[term] > 0 for term in TERMS[method])
    for name, grad in named_leaves(grads).items():
        assert np.isfinite(grad).all(), name
        if name.startswith("plan."):
            assert np.any(grad != 0), f"nothing teaches {name}"
        if name.startswith("teacher."):
            assert not np.any(grad), f"{name} must not learn"


def test_the_teacher_is_the_tower_before_training_and_stays():
    task = make_task("dynamicvit")
    params = task.init(jax.random.key(0))
    learns = task.trainable(params)
    jax.tree.map(np.testing.assert_array_equal, params["teacher"], params["model"])
    assert not any(jax.tree.leaves(learns["teacher"]))
    assert all(jax.tree.leaves((learns["model"], learns["plan"])))


def test_a_frozen_tower_is_its_own_teacher():
    task = make_task("dynamicvit", freeze=True)
    params = task.init(jax.random.key(0))
    assert set(params) == {"model", "plan"}
    assert not any(jax.tree.leaves(task.trainable(params)["model"]))
