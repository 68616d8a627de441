"""One update, as a pure function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, PyTree

from jtok.training import optimizer as opt
from jtok.training.state import TrainState, named_leaves, with_leaves
from jtok.training.task import Task


def micro_batches(batch: PyTree[Array], count: int) -> PyTree[Array]:
    """`[B, ...]` to `[count, B / count, ...]`; micro-batch i takes rows i, i + count, …

    Strided and not contiguous, so that rows split over devices stay on their device.
    """
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def gradients(loss: Callable, trainable: dict[str, Array], batch: PyTree[Array], key: Array, accumulate: int):
    """Mean gradient, loss and logged scalars over `accumulate` micro-batches, one after another.

    loss: `(trainable, batch, key) -> (scalar, dict of scalars)`. For a loss that is a mean over rows this equals the
    gradient of the whole batch, in the memory of a part of it.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return value_and_grad(trainable, batch, key)

    def body(total, part):
        (value, aux), grads = value_and_grad(trainable, *part)
        return jax.tree.map(jnp.add, total, grads), (value, aux)

    zeros = jax.tree.map(jnp.zeros_like, trainable)
    total, logged = jax.lax.scan(body, zeros, (micro_batches(batch, accumulate), jax.random.split(key, accumulate)))
    return jax.tree.map(lambda x: x.mean(0), logged), jax.tree.map(lambda g: g / accumulate, total)


def make_step(
    task: Task, train: ml_collections.ConfigDict, names: tuple[str, ...], optimizer: optax.GradientTransformation
) -> Callable[[TrainState, PyTree[Array]], tuple[TrainState, dict[str, Array]]]:
    """`(state, batch) -> (state, metrics)`. `metrics` holds the task's scalars, `loss`, `grad_norm` (before clipping,
    trainable leaves), `lr`, and `finite`, a bool that is false once loss or gradient is not."""
    schedule = opt.learning_rate(train)

    def step(state: TrainState, batch: PyTree[Array]) -> tuple[TrainState, dict[str, Array]]:
        leaves = named_leaves(state.params)
        trainable = {name: leaves[name] for name in names}

        def loss(trainable, batch, key):
            return task.loss(with_leaves(state.params, trainable), batch, key, state.step)

        key = jax.random.fold_in(state.key, state.step)
        (value, aux), grads = gradients(loss, trainable, batch, key, train.accumulate)
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        params = with_leaves(state.params, optax.apply_updates(trainable, updates))
        ema = None if state.ema is None else opt.averaged(state.ema, params, train.ema, state.step + 1)
        norm = optax.tree.norm(grads)
        metrics = {**aux, "loss": value, "grad_norm": norm, "lr": schedule(state.step)}
        metrics["finite"] = jnp.isfinite(value) & jnp.isfinite(norm)
        return TrainState(state.step + 1, params, ema, opt_state, state.key), metrics

    return step
