"""An adversary in the tokenizer's own step: whose gradients are whose, when it starts, its averages, its resume."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.errors import UserError
from jtok.training import optimizer
from jtok.training.aside import aside, assign
from jtok.training.losses.tokenizer import gradient_penalty, hinge_losses, lecam
from jtok.training.tasks.tokenize_images import TokenizeImages
from tests.training.digits import small_config
from tests.training.tokenizer_tasks import tiny_titok, trained, with_adversary

stop = jax.lax.stop_gradient


@pytest.fixture(scope="module")
def task():
    return TokenizeImages(with_adversary(tiny_titok(), lecam=0.5, r1=0.2))


@pytest.fixture(scope="module")
def batch(task):
    return next(iter(task.train_data()))


@pytest.mark.slow
def test_each_part_has_the_gradient_of_its_own_loss_alone(task, batch):
    params = task.init(jax.random.key(0))
    params["state"] = {"real": jnp.full(1, 0.3), "fake": jnp.full(1, -0.2)}
    key, step, images = jax.random.key(1), jnp.zeros((), jnp.int32), batch["image"].astype(jnp.float32) / 255
    judge_of = task.pictures.adversary.graphdef

    def net(p):
        return nnx.merge(judge_of, nnx.State(jax.tree.map(lambda leaf: leaf[0], p)))

    def tokenizer_alone(tokenizer):
        code, terms = task.code(None, task.tokenizer({"tokenizer": tokenizer}), images, key)
        again = task.tokenizer({"tokenizer": tokenizer}).synthesise(code)
        fooled = -net(params["discriminator"])(again).mean()
        return sum(task.pictures.reconstruction({}, again, images).values()) + terms["bottleneck"] + 0.1 * fooled

    def judge_alone(discriminator):
        code, _ = task.code(None, task.tokenizer(params), images, key)
        judge, again = net(discriminator), task.tokenizer(params).synthesise(code)
        real, fake = judge(images), judge(again)
        held = lecam(real.mean(), fake.mean(), 0.3, -0.2)
        return hinge_losses(real, fake)[0] + 0.5 * held + 0.2 * gradient_penalty(judge, images)

    (value, _), together = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(params, batch, key, step)
    alone, grads = jax.jit(jax.value_and_grad(tokenizer_alone))(params["tokenizer"])
    np.testing.assert_allclose(value, alone, rtol=1e-6)  # the judge's own loss is no part of the value
    for found, expected in ((together["tokenizer"], grads), (together["discriminator"], jax.jit(jax.grad(judge_alone))(
        params["discriminator"]))):  # fmt: skip
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(together["discriminator"])) > 1e-3


@pytest.mark.slow
def test_it_rests_until_its_start_and_its_averages_move_slowly(task, batch):
    rested = TokenizeImages(with_adversary(tiny_titok(), start=2, lecam=0.1))
    states, metrics = trained(rested, 3)
    first, second, third = (jax.tree.leaves(states[i].params["discriminator"]) for i in (0, 2, 3))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(second, third, strict=True))
    assert [float(m["fooled"]) != 0 for m in metrics] == [False, False, True]
    assert not float(states[2].params["state"]["real"][0])
    params = states[2].params
    adversary = rested.pictures.adversary
    judge = nnx.merge(adversary.graphdef, nnx.State(jax.tree.map(lambda leaf: leaf[0], params["discriminator"])))
    mean = judge(batch["image"].astype(jnp.float32) / 255).mean()
    np.testing.assert_allclose(states[3].params["state"]["real"][0], 0.001 * mean, rtol=1e-4)


def test_assigned_parts_become_what_the_loss_says():
    train = small_config(clip=0.01, weight_decay=0.5).train
    train.parts.state = {"assign": True}
    params = {"state.kernel": jnp.arange(3.0), "head.kernel": jnp.ones(2)}
    grads = jax.grad(lambda p: assign(p["state.kernel"], jnp.full(3, 7.0)) + (3 * p["head.kernel"]).sum())(params)
    transform = optimizer.build(train)
    updates, _ = transform.update(grads, transform.init(params), params)
    np.testing.assert_array_equal(params["state.kernel"] + updates["state.kernel"], 7.0)
    assert float(aside(jnp.array(2.0))) == 0 and np.isnan(aside(jnp.array(np.nan)))


def test_a_part_has_a_rate_and_a_clip_of_its_own():
    def first_update(**parts):
        train = small_config(warmup=0, lr=0.1, steps=10, weight_decay=0.0, clip=1.0).train
        train.parts.update(parts)
        params = {"discriminator.kernel": jnp.ones(2), "head.kernel": jnp.ones(2)}
        transform = optimizer.build(train)
        grads = {"discriminator.kernel": jnp.full(2, 1e6), "head.kernel": jnp.full(2, 1e-6)}
        return transform.update(grads, transform.init(params), params)[0]

    alone = first_update()
    apart = first_update(discriminator={"lr": 0.01})
    assert abs(float(alone["head.kernel"][0])) < 0.01  # clipped away by the other part's gradient
    np.testing.assert_allclose(apart["head.kernel"], -0.1, rtol=0.05)
    np.testing.assert_allclose(apart["discriminator.kernel"], -0.01, rtol=0.05)


def test_an_adversary_without_an_optimizer_is_refused():
    config = tiny_titok()
    config.adversary.weight = 0.1
    with pytest.raises(UserError, match="config.train.parts must hold discriminator and state"):
        TokenizeImages(config)


@pytest.mark.slow
def test_adaptive_weight_balances_the_two_gradients(batch):
    images = batch["image"].astype(jnp.float32) / 255
    found = TokenizeImages(with_adversary(tiny_titok(), adaptive=True))
    params, again = found.init(jax.random.key(0)), images[:, ::-1]
    terms = found.pictures(params, again, images, jnp.zeros((), jnp.int32))[0]
    ours = jax.grad(lambda x: sum(found.pictures.reconstruction(params, x, images).values()))(again)
    theirs = jax.grad(lambda x: found.pictures.adversary(params, x, images, jnp.zeros((), jnp.int32))["fooled"])(again)
    fooled = found.pictures.adversary(params, again, images, jnp.zeros((), jnp.int32))["fooled"]
    ratio = jnp.linalg.norm(ours.ravel()) / (jnp.linalg.norm(theirs.ravel()) + 1e-4)
    np.testing.assert_allclose(terms["fooled"], 0.1 * ratio * fooled, rtol=1e-4)
