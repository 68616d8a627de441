"""Support for JAX's transformations of the ops: one linear map with its own transpose, and types under meshes.

A `custom_vjp` forbids forward mode. The ops are `custom_jvp`s instead, whose tangents are one `linear` call: forward
mode runs its map, and reverse mode its transpose, which is written by hand and keeps no N x M array.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir


def linear(forward: Callable[..., Any], backward: Callable[..., Any], known: Any, tangents: Any) -> Any:
    """`forward(known, tangents)`, linear in `tangents`, whose transpose is `backward(known, cotangents)`.

    known, tangents: trees of arrays (None for what is absent). `backward` takes the tree that `forward` returns and
    returns the tree of `tangents`. Both are traced, batched and differentiated as any function.
    """
    (known, known_tree), (tangents, tangents_tree) = jax.tree.flatten(known), jax.tree.flatten(tangents)
    trees = []

    def forward_flat(*args):
        out = forward(known_tree.unflatten(args[: len(known)]), tangents_tree.unflatten(args[len(known) :]))
        leaves, tree = jax.tree.flatten(out)
        trees.append(tree)
        return leaves

    def backward_flat(*args):
        slopes = backward(known_tree.unflatten(args[: len(known)]), trees[0].unflatten(args[len(known) :]))
        return tangents_tree.flatten_up_to(slopes)

    leaves = _bind(forward_flat, backward_flat, len(known), known + tangents)  # fills trees
    return trees[0].unflatten(leaves)


def _bind(forward, backward, count, args):
    return _linear_p.bind(*args, jaxpr=jax.make_jaxpr(forward)(*args), backward=backward, count=count)


def _run(*args, jaxpr, backward, count):
    return jaxpr_as_fun(jaxpr)(*args)


def _jvp(primals, tangents, *, jaxpr, backward, count):
    tangents = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(jaxpr_as_fun(jaxpr), primals, tangents)


def _transpose(cotangents, *args, jaxpr, backward, count):
    cotangents = [ad.instantiate_zeros(c) for c in cotangents]
    slopes = backward(*args[:count], *cotangents)
    wanted = [s if ad.is_undefined_primal(x) else None for s, x in zip(slopes, args[count:], strict=True)]
    return [None] * count + wanted


def _batch(args, axes, *, jaxpr, backward, count):
    """The map of every example, still with a transpose; an example's tangents are its own, so those are repeated."""
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    known_axes = tuple(axes[:count])
    known, tangents = list(args[:count]), [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(args[count:], axes[count:], strict=True)
    ]  # fmt: skip
    forward = jax.vmap(jaxpr_as_fun(jaxpr), (*known_axes, *[0] * len(tangents)))
    transposed = jax.vmap(backward, (*known_axes, *[0] * len(jaxpr.out_avals)))
    out = _bind(forward, transposed, count, known + tangents)
    return out, [0] * len(out)


_linear_p = Primitive("linear_with_transpose")
_linear_p.multiple_results = True
_linear_p.def_impl(_run)
_linear_p.def_abstract_eval(lambda *args, jaxpr, backward, count: jaxpr.out_avals)
ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_run, multiple_results=True))


def varying_over(*arrays: Any) -> tuple[str, ...]:
    """The manual axes of the mesh over which any of the arrays differs from device to device."""
    axes = (jax.typeof(x).manual_axis_type.varying for x in arrays if x is not None)
    return tuple(sorted(frozenset().union(*axes)))


def vary(axes: tuple[str, ...], x: Any) -> Any:
    """The array (or None) as one that varies over `axes`, in which all inputs of an op must agree."""
    if x is None:
        return None
    varying = jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(axis for axis in axes if axis not in varying), to="varying")


def vary_as(like: Any, tree: Any) -> Any:
    """A tree of new arrays, typed as `like` under a `shard_map`."""
    return jax.tree.map(partial(vary, varying_over(like)), tree)


def result(shape: tuple[int, ...], dtype: Any, like: Any) -> jax.ShapeDtypeStruct:
    """What a Pallas kernel returns, varying over a mesh as its input `like`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)
