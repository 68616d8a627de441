"""Proof without an accelerator: compile for a TPU, lower for CUDA, and run a kernel's body in interpret mode.

`libtpu`'s topology descriptions let a machine without a TPU compile for one, VMEM limits included. For CUDA the program
is lowered (the Triton kernel becomes a custom call) and not compiled, because that takes ptxas and a driver.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
CUSTOM_CALLS = {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}

# Memory nobody wrote reads as NaN and a read out of bounds raises, so that a kernel that leans on either fails here.
TPU_INTERPRET = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise")


@functools.cache
def tpu_device(chip: str) -> Any:
    """A device of a TPU topology this machine does not have, to compile for. Needs the libtpu wheel."""
    # libtpu looks for a cloud machine's metadata and takes a lock on the chip; there is neither here.
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]


def lower(function: Callable[..., Any], *args: Any, platform: str, chip: str = "v5e") -> jax.stages.Lowered:
    """`function` lowered for "tpu" (as for `chip`), "cuda" or "cpu", whatever this machine is.

    args: arrays or `jax.ShapeDtypeStruct`s.
    """
    if platform != "tpu":
        return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
    device = tpu_device(chip)
    abstract = AbstractDevice(device_kind=device.device_kind, num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=abstract)):
        traced = jax.jit(function, in_shardings=SingleDeviceSharding(device)).trace(*args)
        return traced.lower(lowering_platforms=("tpu",))


def compile_for_tpu(function: Callable[..., Any], *args: Any, chip: str = "v5e") -> jax.stages.Compiled:
    """`function` compiled for a TPU `chip` ("v4", "v5e", "v5p", "v6e"); raises what the TPU compiler raises."""
    return lower(function, *args, platform="tpu", chip=chip).compile()


def count_kernels(lowered: jax.stages.Lowered, platform: str) -> int:
    """How many Pallas kernels the lowered program calls."""
    return lowered.as_text().count(CUSTOM_CALLS[platform])
