"""A program compiled for TPUs that are not here: memory, traffic, its largest arrays, an estimate of its time.

`libtpu` compiles it. Nothing runs, and no array is allocated.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from jtok.errors import UserError
from jtok.evaluation.aot.collectives import Traffic, traffic
from jtok.evaluation.aot.topology import Slice
from jtok.evaluation.cost.flops import FlopCount, count_jaxpr
from jtok.evaluation.cost.memory import Memory
from jtok.evaluation.cost.scopes import join, scope_of
from jtok.training.state import named_leaves


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of the program: what it is called, its shape over all chips, and its bytes on one."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program compiled for a slice. Memory in bytes a chip, FLOPs of all chips together, seconds.

    largest: the three largest arrays of each kind (parameters, activations and whatever else it was given).
    """

    slice: Slice
    batch: int
    memory: Memory
    flops: FlopCount
    traffic: Traffic
    largest: dict[str, list[Array]]
    lower_seconds: float
    compile_seconds: float
    trains: bool = True  # the optimizer reads and writes arguments beside the matmuls

    def roofline(self) -> dict[str, float]:
        """Seconds that arithmetic, memory and links would take, each alone and at the data sheet's peak.

        Arithmetic: the FLOPs of matmuls and kernels. Memory: operands and results of matmuls, and arguments and outputs
        of a training step (parameters and optimizer state), once each; of other programs the arguments are what the
        matmuls read, or more. It takes at least the largest of the three.
        """
        chips, chip = self.slice.chips, self.slice.chip
        matmuls, held = self.flops.bytes / chips, self.memory.arguments + self.memory.outputs
        touched = matmuls + held if self.trains else max(matmuls, held)
        return {
            "arithmetic": (self.flops.matmul + self.flops.kernel) / chips / chip.flops,
            "memory": touched / chip.bandwidth,
            "links": self.traffic.seconds(chips, self.slice.links),
        }


def compile_program(
    program: Callable[..., Any],
    arguments: tuple[Any, ...],
    part: Slice,
    *,
    batch: int,
    rows: int,
    parts: int,
    held: Mapping[str, PyTree[Any]],
    what: str,
    remedy: str,
    trains: bool = True,
    **jit: Any,
) -> Compiled:
    """Compiles `program(*arguments)` for a slice.

    arguments: shapes with the shardings of the slice's mesh. batch: examples a run. rows: of the (micro-)batch, which
    the mesh cuts in `parts`. held: those of the arguments whose largest arrays are listed, by kind. what, remedy: words
    of the sentence for a program that does not fit. jit: options of `jax.jit`. Raises UserError with that sentence.
    """
    began = time.perf_counter()
    with jax.sharding.use_abstract_mesh(part.abstract()):
        traced = jax.jit(program, **jit).trace(*arguments)
        lowered = traced.lower(lowering_platforms=("tpu",))
    largest = {kind: _largest(tree) for kind, tree in held.items()}
    largest["activations"] = _activations(traced.jaxpr, rows, parts)
    between = time.perf_counter()
    compiled = _compile(lowered, part, largest, what, remedy)
    ended = time.perf_counter()
    plan = compiled.memory_analysis()
    memory = Memory(
        plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes, plan.alias_size_in_bytes
    )
    counted, sent = count_jaxpr(traced.jaxpr, "tpu"), traffic(compiled.as_text())
    return Compiled(part, batch, memory, counted, sent, largest, between - began, ended - between, trains)


def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """The shape of an array that lives there."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _compile(
    lowered: jax.stages.Lowered, part: Slice, largest: dict[str, list[Array]], what: str, remedy: str
) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(_too_large(str(error), part, largest, what, remedy)) from None


def _too_large(error: str, part: Slice, largest: dict[str, list[Array]], what: str, remedy: str) -> str:
    """One sentence: what is needed, what there is, and the largest arrays."""
    sizes = re.search(r"\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)", error)
    sizes = sizes or re.search(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", error)
    arrays = "; ".join(
        f"{kind}: " + ", ".join(f"{a.name} {a.dtype}{list(a.shape)} {a.bytes / 2**30:.2f} GiB" for a in found)
        for kind, found in largest.items()
    )
    said = f"needs {sizes[1]}iB and has {sizes[2]}iB" if sizes else f"does not fit {part.chip.memory / 2**30:.0f} GiB"
    return (
        f"{what} does not fit: each chip of {part.name} {said} of memory (largest arrays, on one chip: {arrays}); "
        f"take {remedy}."
    )


def _largest(tree: PyTree[Any]) -> list[Array]:
    """Of arguments, by what one chip holds of them."""
    leaves = named_leaves(tree).items()
    return _top(Array(name, a.shape, str(a.dtype), _held(a)) for name, a in leaves)


def _held(a: jax.ShapeDtypeStruct) -> int:
    """Bytes of an argument on one chip."""
    return math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize


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
