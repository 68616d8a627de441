"""Every op under JAX's transformations: forward mode, Hessian-vector products, `shard_map`, `pmap`, explicit meshes."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import kernels

B, N, D = 4, 6, 8
KEYS = jax.random.split(jax.random.key(0), 4)
Q, K, V = (jax.random.normal(key, (B, N, 2, 4)) for key in KEYS[:3])
BIAS = jax.random.normal(KEYS[3], (B, N))
X, Y = Q.reshape(B, N, D), K.reshape(B, N, D)
INDEX = jnp.tile(jnp.array([[3, 0, 3, -1]]), (B, 1))
ASSIGN = jnp.tile(jnp.array([[0, 2, 0, 1, -1, 2]]), (B, 1))


def attend(q, k, v, bias):
    every = kernels.attention_scores(q, k, v, bias=bias, rows="all", causal=True, return_lse=True)
    return every.out, every.received, every.lse


def attend_few(q, k, v, bias):
    few = kernels.attention_scores(q, k, v, bias=bias, rows=(0, -1), row_weights=bias[:, :2], per_head=True)
    return few.out, few.received


def attend_many(q, k, v, bias):
    """More scored rows than are simply computed."""
    q = jnp.concatenate([q] * 7, 1)
    many = kernels.attention_scores(
        q, k, v, bias=bias, rows=tuple(range(40)), row_weights=jnp.tile(bias, (1, 7))[:, :40]
    )
    return many.out, many.received


def merge(x, weight):
    return kernels.merge(x, ASSIGN[: x.shape[0]], 3, weight=jnp.exp(weight), mode="mean")


def merge_evenly(x):
    return kernels.merge(x, ASSIGN[: x.shape[0]], 3)[0]


def gather(x):
    return kernels.gather(x, INDEX[: x.shape[0]])


def nearest(x, y):
    return kernels.nearest(x, y)[0]


def distance(x, y):
    return kernels.nearest(x, y, metric="l2", k=2)[0]


def shared(x, y):
    return kernels.nearest(x, Y[0])[0] + y.sum(-1)


def select(x, y):
    picks = kernels.max_min_select(x, 3)
    return kernels.gather(x * y, picks)


OPS = {
    "attention_scores": (attend, (Q, K, V, BIAS)),
    "attention_scores, few rows": (attend_few, (Q, K, V, BIAS)),
    "attention_scores, many rows": (attend_many, (Q, K, V, BIAS)),
    "gather": (gather, (X,)),
    "max_min_select": (select, (X, Y)),
    "merge": (merge, (X, BIAS)),
    "merge, no weight": (merge_evenly, (X,)),
    "nearest": (nearest, (X, Y)),
    "nearest, l2": (distance, (X, Y)),
    "nearest, shared": (shared, (X, Y)),
}


def loss_of(function):
    return lambda *args: sum(jnp.sum(jnp.sin(part)) for part in jax.tree.leaves(function(*args)))


def close(found, wanted, tolerance=2e-5):
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)  # noqa: E731
    jax.tree.map(compare, jax.device_get(found), jax.device_get(wanted))


def step(args):
    return tuple(jax.random.normal(jax.random.key(9 + i), x.shape) for i, x in enumerate(args))


def difference(function, args, along, size=3e-3):
    """Central differences; errors of float32 and of the third order."""
    ahead, back = (function(*(x + sign * size * t for x, t in zip(args, along, strict=True))) for sign in (1, -1))
    return jax.tree.map(lambda a, b: (a - b) / (2 * size), ahead, back)


@pytest.mark.parametrize("op", OPS)
def test_forward_mode(op):
    function, args = OPS[op]
    along = step(args)
    values, slopes = jax.jit(lambda *a: jax.jvp(function, a, along))(*args)
    close(values, function(*args))
    close(slopes, difference(jax.jit(function), args, along), 5e-3)


@pytest.mark.parametrize("op", OPS)
def test_forward_mode_is_the_transpose_of_reverse_mode(op):
    function, args = OPS[op]
    along = step(args)
    values, slopes = jax.jvp(function, args, along)
    up = jax.tree.map(jnp.cos, values)
    down = jax.jit(lambda *a: jax.vjp(function, *a)[1](up))(*args)
    dot = lambda a, b: sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))  # noqa: E731
    close(dot(slopes, up), dot(along, down), 1e-4)


@pytest.mark.parametrize("op", OPS)
def test_hessian_vector_product(op):
    function, args = OPS[op]
    along = step(args)
    slope = jax.grad(loss_of(function), tuple(range(len(args))))
    _, found = jax.jit(lambda *a: jax.jvp(slope, a, along))(*args)
    close(found, difference(jax.jit(slope), args, along), 2e-2)


@pytest.mark.parametrize("op", OPS)
def test_vmap_of_gradients_and_remat(op):
    function, args = OPS[op]
    slope = jax.grad(loss_of(function), tuple(range(len(args))))
    alone = lambda *a: slope(*(x[None] for x in a))  # noqa: E731
    found = jax.tree.map(lambda x: x[:, 0], jax.jit(jax.vmap(alone))(*args))
    close(found, slope(*args))
    batched = jax.vmap(lambda *a: function(*(x[None] for x in a)))
    close(jax.jit(jax.grad(loss_of(batched), tuple(range(len(args)))))(*args), found)
    close(jax.jit(jax.grad(loss_of(jax.checkpoint(function)), tuple(range(len(args)))))(*args), found)


def test_a_long_gradient_keeps_no_matrix():
    n = 4096
    arrays = [jax.ShapeDtypeStruct((1, n, 2, 16), jnp.float32)] * 3
    loss = lambda q, k, v: kernels.attention_scores(q, k, v, rows="all").received.var()  # noqa: E731
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * n * 4


def on_devices() -> None:
    """Every op over two devices: in a `shard_map` of default settings, a `pmap`, and a mesh of explicit axes."""
    from jax.sharding import AxisType, PartitionSpec

    rows = PartitionSpec("data")
    for name, (function, args) in OPS.items():
        number = tuple(range(len(args)))
        slope = jax.grad(loss_of(function), number)
        wanted = jax.jit(lambda *a: (function(*a), slope(*a)))(*args)  # noqa: B023
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
        split = jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows)
        inside = jax.shard_map(slope, mesh=mesh, in_specs=rows, out_specs=rows)
        forward = lambda *a: jax.jvp(split, a, step(args))[1]  # noqa: B023, E731
        close(jax.jit(lambda *a: (split(*a), inside(*a)))(*args), wanted)  # noqa: B023
        close(jax.jit(jax.grad(loss_of(split), number))(*args), wanted[1])
        close(jax.jit(forward)(*args), jax.jvp(function, args, step(args))[1])
        halves = [x.reshape(2, B // 2, *x.shape[1:]) for x in args]
        found = jax.pmap(lambda *a: (function(*a), slope(*a)))(*halves)  # noqa: B023
        close(jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), found), wanted)
        print(name)
        explicit = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
        with jax.set_mesh(explicit):
            arrays = [jax.device_put(x, rows) for x in args]
            found = jax.jit(lambda *a: (function(*a), slope(*a)))(*arrays)  # noqa: B023
            close(found, wanted)
            assert jax.tree.leaves(found)[0].sharding.spec[0] == "data", name


@pytest.mark.slow
def test_on_devices():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, __file__], check=True, env=environment)


if __name__ == "__main__":
    on_devices()
