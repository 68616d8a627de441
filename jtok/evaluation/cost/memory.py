"""Memory: what the compiler plans for one call, and what the parameters take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jtok.errors import UserError


@dataclass(frozen=True)
class Memory:
    """Bytes of device memory for one call, as the compiler planned them.

    `aliased` bytes are arguments given up for outputs (donated), counted in both and therefore taken off once.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def peak(self) -> int:
        """Bytes held at once: arguments + outputs + temporaries - aliased. Parameters count among the arguments."""
        return self.arguments + self.outputs + self.temporaries - self.aliased


@dataclass(frozen=True)
class Parameters:
    """Number of scalars in a tree of parameters, and the bytes they take."""

    count: int
    bytes: int


def peak(fn: Callable, *args: Any, **kwargs: Any) -> Memory:
    """Compile `fn(*args, **kwargs)` and read the compiler's memory plan; nothing runs, and nothing is allocated.

    Args:
        fn: a function, jitted already (its donations are respected) or not.
        args, kwargs: pytrees of arrays or `jax.ShapeDtypeStruct`s.

    Raises:
        UserError: the backend keeps no memory plan.
    """
    jitted = fn if hasattr(fn, "lower") else jax.jit(fn)
    plan = jitted.lower(*args, **kwargs).compile().memory_analysis()
    if plan is None:
        raise UserError(f"the {jax.default_backend()} backend reports no memory plan; measure on cpu, gpu or tpu")
    return Memory(
        arguments=plan.argument_size_in_bytes,
        outputs=plan.output_size_in_bytes,
        temporaries=plan.temp_size_in_bytes,
        aliased=plan.alias_size_in_bytes,
    )


def parameters(tree: Any) -> Parameters:
    """Count the numbers in a pytree of arrays or `jax.ShapeDtypeStruct`s; random keys and Python scalars aside."""
    arrays = (leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))
    leaves = [leaf for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.number)]
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    return Parameters(sum(sizes), sum(n * leaf.dtype.itemsize for n, leaf in zip(sizes, leaves, strict=True)))
