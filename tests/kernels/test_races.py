"""TPU kernels on two simulated cores: no core reads or writes what another writes at the same time.

The interpreter's race detector watches every access to shared memory; its verdict sits in a private module of JAX. A
kernel that accumulates over a grid dimension it calls "parallel" is found here, and nowhere else without a TPU.
"""

import importlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jtok.kernels.attention_scores import tpu as attention
from jtok.kernels.gather import tpu as gather
from jtok.kernels.max_min_select import reference
from jtok.kernels.max_min_select import tpu as select
from jtok.kernels.merge import tpu as merge
from jtok.kernels.nearest import tpu as nearest

# The cores are threads that wait for each other, and JAX has one thread for each CPU.
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
pytestmark = pytest.mark.skipif(CPUS < 2, reason="two simulated cores need two CPUs")

TWO_CORES = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def run_attention():
    q, k, v = (normal(i, 2, 40, 2, 16) for i in range(3))
    return attention.attend(q, k, v, None, jnp.ones((2, 40)), causal=True, scale=0.25, interpret=TWO_CORES)


def run_gather():
    index = jnp.asarray(np.random.default_rng(0).integers(-1, 9, (3, 5)), jnp.int32)
    return gather.take(normal(0, 3, 9, 128), index, interpret=TWO_CORES)


def run_merge():
    assign = jnp.asarray(np.random.default_rng(0).integers(-1, 5, (3, 20)), jnp.int32)
    return merge.segment_sum(normal(0, 3, 20, 128), assign, None, num=5, interpret=TWO_CORES)


def run_nearest():
    a, b = normal(0, 2, 20, 16), normal(1, 2, 150, 16)
    return nearest.search(a, b, jnp.ones((2, 150)), jnp.zeros((2, 150)), None, k=2, interpret=TWO_CORES)


def run_select():
    args = (normal(0, 2, 20, 16), None, None, None, None, jnp.ones((2, 20), bool))
    return select.select(*args, k=6, metric="cosine", interpret=TWO_CORES)


def races(run) -> bool:
    """Whether the detector saw a race while `run` ran."""
    found = importlib.import_module("jax._src.pallas.mosaic.interpret.interpret_pallas_call")
    pltpu.reset_tpu_interpret_mode_state()
    jax.block_until_ready(run())
    verdict = found.races.races_found
    pltpu.reset_tpu_interpret_mode_state()
    return verdict


@pytest.mark.parametrize(
    "run", [run_attention, run_gather, run_merge, run_nearest, run_select], ids=lambda f: f.__name__[4:]
)
def test_no_core_touches_what_another_writes(run):
    assert not races(run)


def test_the_detector_finds_a_race():
    def add(x, out):
        out[...] += x[...]

    def run():
        return pl.pallas_call(
            add,
            grid=(4,),
            in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
            out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
            out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            interpret=TWO_CORES,
        )(normal(0, 32, 128))

    assert races(run)


def test_two_cores_pick_what_the_plain_path_picks():
    x = normal(0, 2, 20, 16)
    plain = reference.select(x, None, None, None, None, jnp.ones((2, 20), bool), k=6, metric="cosine")
    np.testing.assert_array_equal(run_select(), plain)
