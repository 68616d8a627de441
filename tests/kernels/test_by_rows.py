"""Attention on a batch that is split over devices: the same numbers, and no device is sent another's rows."""

import subprocess
import sys

PROGRAM = """
import os
os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=4")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jtok import kernels

keys = jax.random.split(jax.random.key(0), 4)
arrays = [jax.random.normal(k, (8, 20, 2, 8)) for k in keys[:3]] + [jax.random.normal(keys[3], (8, 20))]

def loss(q, k, v, bias):
    every = kernels.attention_scores(q, k, v, bias=bias, rows="all")
    few = kernels.attention_scores(q, k, v, bias=bias, rows=(0,), return_probabilities=True)
    return (every.out**2).mean() + (every.received**2).mean() + (few.probabilities**2).mean()

whole = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(*arrays)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in arrays]
with jax.set_mesh(mesh):
    compiled = jax.jit(jax.value_and_grad(lambda *a: loss(*a), (0, 1, 2, 3))).lower(*split).compile()
    found = compiled(*split)
assert "all-gather" not in compiled.as_text() and "all-reduce" in compiled.as_text()
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, jax.device_get(found))
"""


def test_rows_stay_on_their_device():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
