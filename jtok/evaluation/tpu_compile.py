"""The training step of a config, compiled for TPUs that are not here: memory, traffic, and an estimate of its time.

The program is the loop's own (`jtok.training.step.make_step`), its state and batch placed by `jtok.sharding` on the
mesh of `config.mesh`; `libtpu` compiles it. Nothing runs, and no array is allocated.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from jtok.errors import UserError
from jtok.evaluation.collectives import Traffic, traffic
from jtok.evaluation.flops import FlopCount, count_jaxpr
from jtok.evaluation.memory import Memory
from jtok.evaluation.scopes import join, scope_of
from jtok.evaluation.topology import Slice, describe
from jtok.sharding import check_batch, row_parts, rows, shardings, whole
from jtok.training import optimizer as opt
from jtok.training.config import validate
from jtok.training.image_task import UNTRAINED
from jtok.training.sharding import mesh_sizes
from jtok.training.state import TrainState, create, named_leaves, trainable_names
from jtok.training.step import make_step
from jtok.training.tasks import make_task


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of the program: what it is called, its shape over all chips, and its bytes on one."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A training step compiled for a slice. Memory in bytes a chip, FLOPs of all chips together, seconds.

    largest: the three largest arrays of each kind (parameters, optimizer, activations).
    """

    slice: Slice
    batch: int
    memory: Memory
    flops: FlopCount
    traffic: Traffic
    largest: dict[str, list[Array]]
    lower_seconds: float
    compile_seconds: float

    def roofline(self) -> dict[str, float]:
        """Seconds that arithmetic, memory and links would take, each alone and at the data sheet's peak.

        Arithmetic: the FLOPs of matmuls and kernels. Memory: operands and results of matmuls, and arguments and outputs
        of the step (parameters and optimizer state), once each. A step takes at least the largest of the three.
        """
        chips, chip = self.slice.chips, self.slice.chip
        touched = self.flops.bytes / chips + self.memory.arguments + self.memory.outputs
        return {
            "arithmetic": (self.flops.matmul + self.flops.kernel) / chips / chip.flops,
            "memory": touched / chip.bandwidth,
            "links": self.traffic.seconds(chips, self.slice.links),
        }


def compile_training(config: ml_collections.ConfigDict, topology: str) -> Compiled:
    """Compiles the training step of a config for `topology`, such as `v5e:16x16`.

    Raises UserError for a config that cannot run, a task without `example_batch`, a topology that does not exist, a
    mesh or batch that does not divide, and a program that does not fit a chip's memory.
    """
    validate(config)
    part = describe(topology, **mesh_sizes(config))
    size, accumulate = config.train.batch, config.train.accumulate
    check_batch(size, accumulate, part.mesh)
    task, names, optimizer, state = _abstract_state(config)
    places = shardings(state, part.mesh)
    arguments = (
        jax.tree.map(_placed, state, places),
        jax.tree.map(lambda a: _placed(a, rows(part.mesh)), task.example_batch(size)),
    )
    step, results = make_step(task, config.train, names, optimizer), (places, whole(part.mesh))
    began = time.perf_counter()
    with jax.sharding.use_abstract_mesh(part.abstract()):
        traced = jax.jit(step, donate_argnums=0, out_shardings=results).trace(*arguments)
        lowered = traced.lower(lowering_platforms=("tpu",))
    activations = _activations(traced.jaxpr, size // accumulate, row_parts(part.mesh))
    largest = {**_largest_state(state, places), "activations": activations}
    between = time.perf_counter()
    compiled = _compile(lowered, part, largest)
    ended = time.perf_counter()
    plan = compiled.memory_analysis()
    memory = Memory(
        plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes, plan.alias_size_in_bytes
    )
    counted, sent = count_jaxpr(traced.jaxpr, "tpu"), traffic(compiled.as_text())
    return Compiled(part, size, memory, counted, sent, largest, between - began, ended - between)


def _abstract_state(config: ml_collections.ConfigDict) -> tuple[Any, tuple[str, ...], Any, TrainState]:
    """(task, names of what learns, optimizer, state without arrays) as `jtok.training.loop` makes them."""
    fresh = config.copy_and_resolve_references()
    # where the numbers come from changes no shape, and reading them would take memory
    fresh.weights = UNTRAINED if fresh.get("freeze") else ""
    if "base" in fresh:
        fresh.base.path = UNTRAINED
    task = make_task(fresh)
    if not hasattr(task, "example_batch"):
        raise UserError(f"jtok cannot compile the step of '{config.task}': its batches have no shape of their own.")
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(task.init, key)
    names = trainable_names(params, task.trainable(params))
    if not names:
        raise UserError("every parameter is frozen: leave at least one to train")
    optimizer, average = opt.build(config.train), config.train.ema > 0
    state = jax.eval_shape(lambda p, k: create(p, names, optimizer, ema=average, key=k), params, key)
    return task, names, optimizer, state


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _compile(lowered: jax.stages.Lowered, part: Slice, largest: dict[str, list[Array]]) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(_too_large(str(error), part, largest)) from None


def _too_large(error: str, part: Slice, largest: dict[str, list[Array]]) -> str:
    """One sentence: what is needed, what there is, and the largest arrays."""
    sizes = re.search(r"\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)", error)
    sizes = sizes or re.search(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", error)
    arrays = "; ".join(
        f"{kind}: " + ", ".join(f"{a.name} {a.dtype}{list(a.shape)} {a.bytes / 2**30:.2f} GiB" for a in found)
        for kind, found in largest.items()
    )
    said = f"needs {sizes[1]}iB and has {sizes[2]}iB" if sizes else f"does not fit {part.chip.memory / 2**30:.0f} GiB"
    return (
        f"the step does not fit: each chip of {part.name} {said} of memory (largest arrays, on one chip: {arrays}); "
        "take more chips, a smaller batch, config.mesh.fsdp, config.train.remat or config.train.accumulate."
    )


def _largest_state(state: TrainState, places: PyTree[NamedSharding]) -> dict[str, list[Array]]:
    parts = {"parameters": (state.params, places.params), "optimizer": (state.opt_state, places.opt_state)}
    found = {}
    for kind, (tree, where) in parts.items():
        held = named_leaves(where)
        leaves = named_leaves(tree).items()
        found[kind] = _top(Array(n, a.shape, str(a.dtype), _bytes(_held(a, held[n]))) for n, a in leaves)
    return found


def _held(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """What one chip holds of an array."""
    return jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype)


def _activations(jaxpr: ClosedJaxpr, size: int, parts: int) -> list[Array]:
    """The largest results of matmuls and scans that have an axis of the (micro-)batch; scans stack what the backward
    pass reads. What the compiler fuses or recomputes is among them, so they are candidates and not allocations."""
    found = {}
    for scope, eqn in _equations(jaxpr.jaxpr, ""):
        for variable in eqn.outvars if eqn.primitive.name in ("scan", "dot_general") else ():
            a = variable.aval
            if size in a.shape:
                found.setdefault((scope, a.shape), Array(scope or "step", a.shape, str(a.dtype), _bytes(a) // parts))
    return _top(found.values())


def _equations(jaxpr: Jaxpr, scope: str) -> Iterator[tuple[str, Any]]:
    for eqn in jaxpr.eqns:
        inside = join(scope, scope_of(eqn))
        yield inside, eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if isinstance(inner, Jaxpr):
                    yield from _equations(inner, inside)


def _bytes(a: Any) -> int:
    return math.prod(a.shape) * a.dtype.itemsize


def _top(arrays: Any, count: int = 3) -> list[Array]:
    return sorted(arrays, key=lambda a: -a.bytes)[:count]
