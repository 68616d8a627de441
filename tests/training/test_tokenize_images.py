"""The tokenizer's training task: finite losses that fall, PSNR at several lengths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.training.tasks.tokenize_images import TokenizeImages, default_config


@pytest.fixture(scope="module")
def task():
    config = default_config()
    small = {"image": 16, "patch": 8, "tokens": 4, "encoder": (32, 1, 2), "decoder": (32, 1, 2), "drop_tail": True}
    config.tokenizer.fields.update(small | {"bottleneck": "fsq", "levels": (8, 5, 5), "code_width": 3})
    config.data.options.update({"size": 16})
    config.loss.update({"square": 1.0, "absolute": 0.5, "pyramid": 0.1})
    config.train.batch = 8
    return TokenizeImages(config)


def test_loss_falls_on_one_batch(task):
    params = task.init(jax.random.key(0))
    batch = {"image": next(iter(task.train_data()))["image"]}

    @jax.jit
    def step(params, key):
        (value, terms), grads = jax.value_and_grad(task.loss, has_aux=True)(
            params, batch, key, jnp.zeros((), jnp.int32)
        )
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), value, terms

    values = []
    for i in range(30):
        params, value, terms = step(params, jax.random.key(i))
        values.append(float(value))
    assert all(np.isfinite(float(t)) for t in terms.values()) and {"square", "absolute", "pyramid"} <= terms.keys()
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


def test_psnr_at_the_lengths_asked_for(task):
    found = task.evaluate(task.init(jax.random.key(0)), next(iter(task.train_data())))
    assert set(found) == {"psnr_1", "psnr_4", "psnr_16"} and found["psnr_1"].shape == (8,)
