"""Rates, decay, clipping and averaging."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtok.errors import UserError
from jtok.training import config as cfg
from jtok.training import optimizer
from tests.training.digits import small_config


def test_learning_rate_values():
    train = small_config(steps=110, warmup=10, lr=0.5, min_lr=0.1).train
    rate = [float(optimizer.learning_rate(train)(count)) for count in range(110)]
    assert rate[0] == pytest.approx(0.05)
    assert rate[4] == pytest.approx(0.25)
    assert rate[9] == pytest.approx(0.5)  # the tenth update: the peak
    assert rate[59] == pytest.approx(0.1 + 0.4 * 0.5)  # half way down
    assert rate[34] == pytest.approx(0.1 + 0.4 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate[109] == pytest.approx(0.1)


def test_learning_rate_without_warmup_starts_near_the_peak():
    train = small_config(steps=100, warmup=0, lr=1.0).train
    rate = optimizer.learning_rate(train)
    assert float(rate(0)) == pytest.approx(0.5 * (1 + math.cos(math.pi / 100)))
    assert float(rate(99)) == pytest.approx(0.0, abs=1e-7)


def test_decay_goes_by_name_and_not_by_rank():
    params = {
        "blocks.attention.kernel": jnp.ones((3, 4, 4)),
        "blocks.attention.bias": jnp.ones((3, 4)),  # a stack of biases looks like a matrix
        "blocks.norm.scale": jnp.ones((3, 4)),
        "word_embedding": jnp.ones((5, 4)),
        "table.embedding": jnp.ones((5, 4)),
        "position_embedding": jnp.ones((5, 4)),
        "class_token": jnp.ones((1, 4)),
    }
    assert [name for name, yes in optimizer.decay_mask(params).items() if yes] == [
        "blocks.attention.kernel",
        "word_embedding",
        "table.embedding",
    ]
    train = small_config(steps=10, warmup=0, lr=0.1, weight_decay=0.5, clip=0.0).train
    transform = optimizer.build(train)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zeros, transform.init(params), params)
    after = optax.apply_updates(params, updates)
    first_rate = float(optimizer.learning_rate(train)(0))
    np.testing.assert_allclose(after["blocks.attention.kernel"], 1 - 0.5 * first_rate, rtol=1e-6)
    np.testing.assert_array_equal(after["blocks.attention.bias"], 1.0)
    np.testing.assert_array_equal(after["position_embedding"], 1.0)


def test_gradients_are_clipped_by_their_global_norm():
    # AdamW's first update forgets the scale of a gradient; its first moment, (1 - b1) times the gradient, does not.
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    for clip, scale in [(1.0, 0.2), (10.0, 1.0), (0.0, 1.0)]:
        transform = optimizer.build(small_config(clip=clip, b1=0.9).train)
        _, state = transform.update(grads, transform.init(params), params)
        moment = optax.tree.get(state, "mu")
        np.testing.assert_allclose(moment["a"], 0.1 * 3.0 * scale, rtol=1e-5)
        np.testing.assert_allclose(moment["b"], 0.1 * 4.0 * scale, rtol=1e-5)


def test_average_follows_its_formula_and_leaves_equal_values_alone():
    ema, new = {"a": jnp.array([1.0])}, {"a": jnp.array([3.0])}
    assert float(optimizer.averaged(ema, new, 0.9, 1000)["a"][0]) == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert float(optimizer.averaged(ema, new, 0.9, 1)["a"][0]) == pytest.approx(1 + (1 - 2 / 11) * 2)
    still = {"a": jax.random.normal(jax.random.key(0), (1000,))}
    np.testing.assert_array_equal(optimizer.averaged(still, still, 0.999, 5)["a"], still["a"])


@pytest.mark.parametrize(
    "field, value",
    [
        ("batch", 0),
        ("lr", 0.0),
        ("min_lr", 1.0),
        ("warmup", 40),
        ("ema", 1.0),
        ("accumulate", 3),
        ("dtype", "float16"),
        ("keep", 0),
        ("clip", -1.0),
    ],
)
def test_config_that_cannot_run_is_named(field, value):
    with pytest.raises(UserError, match=rf"config\.train\.{field} = .* must"):
        cfg.validate(small_config(**{field: value}))


def test_missing_fields_are_named():
    config = small_config()
    del config.train.lr
    with pytest.raises(UserError, match="config.train lacks lr"):
        cfg.validate(config)
