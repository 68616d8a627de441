"""Memory plans of programs whose buffers are known."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.evaluation.cost.memory import Memory, parameters, peak

MATRIX = jax.ShapeDtypeStruct((512, 512), jnp.float32)
SIZE = 512 * 512 * 4


def test_arguments_outputs_and_temporaries_are_told_apart():
    got = peak(lambda x: (x @ x) @ x, MATRIX)  # one product lives while the other is made
    assert (got.arguments, got.outputs, got.aliased) == (SIZE, SIZE, 0)
    assert SIZE <= got.temporaries < 2 * SIZE
    assert got.peak == got.arguments + got.outputs + got.temporaries


def test_peak_grows_with_what_is_kept_for_the_gradient():
    def loss(x, depth):
        for _ in range(depth):
            x = jnp.tanh(x @ x)
        return x.sum()

    shallow, deep = (peak(jax.grad(partial(loss, depth=depth)), MATRIX).temporaries for depth in (2, 8))
    assert deep >= shallow + 5 * SIZE


def test_donated_arguments_are_counted_once():
    got = peak(jax.jit(lambda x: x + 1, donate_argnums=0), MATRIX)
    assert got.aliased == SIZE
    assert got.peak == SIZE + got.temporaries


def test_peak_adds_up():
    assert Memory(arguments=7, outputs=5, temporaries=3, aliased=2).peak == 13


def test_parameters_count_numbers_and_bytes_and_nothing_else():
    tree = {
        "w": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16),
        "b": jnp.zeros(4),
        "key": jax.random.key(0),
        "rate": 0.5,
        "none": None,
    }
    got = parameters(tree)
    assert (got.count, got.bytes) == (16, 12 * 2 + 4 * 4)


def test_parameters_reads_a_module_without_making_it():
    linear = nnx.eval_shape(lambda: nnx.Linear(1024, 4096, rngs=nnx.Rngs(0)))
    got = parameters(nnx.state(linear, nnx.Param))
    assert (got.count, got.bytes) == (1024 * 4096 + 4096, 4 * (1024 * 4096 + 4096))
