"""Ops on a batch that is split over devices: the same numbers, no device is sent another's rows, kernels are taken."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jtok import kernels

keys = jax.random.split(jax.random.key(0), 4)
arrays = [jax.random.normal(k, (8, 64, 2, 64)) for k in keys[:3]] + [jax.random.normal(keys[3], (8, 64))]
table = jax.random.normal(keys[0], (96, 128))

def attend(q, k, v, bias):
    every = kernels.attention_scores(q, k, v, bias=bias, rows="all")
    few = kernels.attention_scores(q, k, v, bias=bias, rows=(0,), return_probabilities=True)
    return (every.out**2).mean() + (every.received**2).mean() + (few.probabilities**2).mean()

def reduce(q, k, v, bias):
    x, y = q.reshape(8, 64, 128), k.reshape(8, 64, 128)
    picked = kernels.max_min_select(x, 5, valid=bias > -1)
    value, index = kernels.nearest(x, y)
    code, number = kernels.nearest(x, table, metric="l2")
    masked, _ = kernels.nearest(x, table[:64], mask=bias > 0)
    kept = kernels.gather({"x": x, "bias": bias}, picked)
    heads = kernels.gather(v.transpose(0, 2, 1, 3), picked, axis=2)
    merged, mass = kernels.merge(x, index % 7, 7, weight=jnp.exp(bias), mode="mean")
    parts = [value, code, masked, kept["x"], kept["bias"], heads, merged, mass, number % 5]
    return sum((part.astype(jnp.float32) ** 2).mean() for part in parts)

mesh = jax.make_mesh((2, 2, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
rows = PartitionSpec(("data", "fsdp"))
split = [jax.device_put(a, NamedSharding(mesh, rows)) for a in arrays]
tpu = AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
chips = AbstractMesh((2, 2, 1), mesh.axis_names, axis_types=mesh.axis_types, abstract_device=tpu)
shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(chips, rows)) for a in arrays]
for loss, kernels_taken in ((attend, 1), (reduce, 7)):
    step = lambda *a: jax.value_and_grad(loss, (0, 1, 2, 3))(*a)
    whole = jax.jit(step)(*arrays)
    with jax.set_mesh(mesh):
        traced = jax.jit(lambda *a: step(*a)).trace(*split)
        compiled = traced.lower().compile()
        found = compiled(*split)
    with jax.sharding.use_abstract_mesh(chips):
        forward = jax.jit(lambda *a: loss(*a)).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    assert "all-gather" not in compiled.as_text() and "all-reduce" in compiled.as_text()
    assert forward.count("tpu_custom_call") >= kernels_taken, (loss, forward.count("tpu_custom_call"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, jax.device_get(found))
"""


@pytest.mark.slow
def test_rows_stay_on_their_device():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)
