"""One update: accumulation, freezing, averaging, precision."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.training import optimizer
from jtok.training.state import create, named_leaves, trainable_names, with_leaves
from jtok.training.step import make_step
from tests.training.digits import Digits, small_config


class Quiet(Digits):
    """Without input noise, so that a loss is a plain mean over rows."""

    def loss(self, params, batch, key, step):
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(self.logits(params, batch["image"])), batch["label"][:, None], axis=1
        )
        return -picked.mean(), {}


def updated(task, mask=None, steps=3, **train):
    """The states after 0, 1, … `steps` updates."""
    config = small_config(**train).train
    params = task.init(jax.random.key(1))
    names = trainable_names(params, mask)
    transform = optimizer.build(config)
    state = create(params, names, transform, ema=config.ema > 0, key=jax.random.key(2))
    step = jax.jit(make_step(task, config, names, transform))
    states, data = [state], iter(task.train_data())
    for _ in range(steps):
        state, metrics = step(state, next(data))
        states.append(state)
    return states, metrics


def test_micro_batches_give_the_update_of_the_whole_batch(highest_precision):
    (whole, once), (parts, often) = updated(Quiet()), updated(Quiet(), accumulate=4)
    np.testing.assert_allclose(once["loss"], often["loss"], rtol=1e-6)
    np.testing.assert_allclose(once["grad_norm"], often["grad_norm"], rtol=1e-5)
    for name, leaf in named_leaves(whole[-1].params).items():
        np.testing.assert_allclose(leaf, named_leaves(parts[-1].params)[name], rtol=2e-5, atol=2e-6, err_msg=name)
    assert int(parts[-1].step) == 3


def test_micro_batches_draw_their_own_keys():
    """The digits task adds noise drawn from the key: two halves with one key would repeat it."""

    class Draw(Digits):
        def loss(self, params, batch, key, step):
            return params["head"]["bias"].sum(), {"draw": jax.random.uniform(key)}

    draws = {float(updated(Draw(), steps=n, accumulate=a)[1]["draw"]) for n in (1, 2) for a in (1, 2)}
    assert len(draws) == 4


def test_frozen_leaves_stay_and_cost_nothing():
    states, metrics = updated(Quiet(), mask={"hidden": False, "head": True}, ema=0.9)
    first, last = named_leaves(states[0].params), named_leaves(states[-1].params)
    np.testing.assert_array_equal(first["hidden.kernel"], last["hidden.kernel"])
    np.testing.assert_array_equal(first["hidden.kernel"], named_leaves(states[-1].ema)["hidden.kernel"])
    assert np.abs(first["head.kernel"] - last["head.kernel"]).max() > 1e-4
    assert not [name for name in named_leaves(states[-1].opt_state) if "hidden" in name]
    assert float(metrics["grad_norm"]) > 0


def test_average_over_updates():
    states, _ = updated(Quiet(), ema=0.5, steps=4)
    expected = np.asarray(states[0].params["head"]["kernel"], np.float64)
    for number, state in enumerate(states[1:], 1):
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["head"]["kernel"], np.float64)
    np.testing.assert_allclose(states[-1].ema["head"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert states[-1].eval_params is states[-1].ema
    assert updated(Quiet(), steps=1)[0][-1].ema is None


def test_finite_flag_sees_loss_and_gradient():
    class Steep(Digits):
        def loss(self, params, batch, key, step):
            return jnp.sqrt(jnp.abs(params["head"]["bias"]).sum()), {}  # 0 with an infinite slope

    assert bool(updated(Quiet(), steps=1)[1]["finite"])
    metrics = updated(Steep(), steps=1)[1]
    assert float(metrics["loss"]) == 0.0 and not bool(metrics["finite"])
    assert not bool(updated(Digits(poison=0), steps=1)[1]["finite"])


def test_master_parameters_are_float32_and_frozen_ones_keep_their_type():
    params = {"a": {"kernel": jnp.ones((2, 2), jnp.bfloat16)}, "b": {"kernel": jnp.ones((2, 2), jnp.bfloat16)}}
    names = trainable_names(params, {"a": True, "b": False})
    state = create(params, names, optimizer.build(small_config().train), ema=False, key=jax.random.key(0))
    assert state.params["a"]["kernel"].dtype == jnp.float32
    assert state.params["b"]["kernel"].dtype == jnp.bfloat16


def test_names_of_an_nnx_state_are_those_of_a_plain_tree():
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    assert set(named_leaves(state)) == {"kernel", "bias"}
    changed = with_leaves(state, {"bias": jnp.ones(4)})
    np.testing.assert_array_equal(changed["bias"][...], 1.0)
    np.testing.assert_array_equal(changed["kernel"][...], state["kernel"][...])
