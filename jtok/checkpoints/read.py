"""Reads a released checkpoint into parameters, tensor by tensor; names and shapes are checked before anything is read.

Every tensor is read from disk once, converted to our layout and placed in the parameters. There is never more than
one tensor of the file beside the parameters, which lie on the host, or directly on the devices that hold them.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding

from jtok.checkpoints.match import Fill, Format, Part, match
from jtok.checkpoints.safetensor_files import Weights
from jtok.checkpoints.trees import flatten


def read(
    weights: Weights, parts: Mapping[str, Part], like: Mapping[str, Any], form: Format, *, on_device: bool = False
) -> dict[str, Any]:
    """Parameters of the structure, shapes and dtypes of `like` from a checkpoint.

    parts: name -> part; the first level of `like` are these names (with one part called "" the parameters themselves).
    like: nested dict of arrays or `jax.ShapeDtypeStruct`.
    on_device: fill the parameters where they are to live, sharded as the leaves of `like` say, so that the host never
    holds them; each new shape costs a compilation, which small models do not earn back.

    Raises UserError as `match` does, and for a file that cannot be read.
    """
    wanted = flatten(like)
    by_name = defaultdict(list)
    for fill in match(weights, parts, wanted, form):
        by_name[fill.name].append(fill)
    leaves = {path: (_on_device if on_device else _on_host)(leaf) for path, leaf in wanted.items()}
    for name, tensor in weights.tensors(by_name):
        for fill in by_name[name]:
            first, last = fill.rule.thirds
            chosen = tensor if last - first == 3 else tensor[first * len(tensor) // 3 : last * len(tensor) // 3]
            leaves[fill.path] = _filled(leaves[fill.path], chosen, fill)
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaves[path]) for path in wanted])


def _on_host(leaf: Any) -> np.ndarray:
    return np.zeros(leaf.shape, leaf.dtype)


def _on_device(leaf: Any) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype, device=getattr(leaf, "sharding", None))


def _filled(leaf: np.ndarray | jax.Array, tensor: np.ndarray, fill: Fill) -> np.ndarray | jax.Array:
    if isinstance(leaf, jax.Array):
        # Without waiting, tensors would queue up in memory.
        return _place(leaf, tensor, fill.start, fill.rule.how, fill.box, leaf.sharding).block_until_ready()
    box = tuple(slice(start, start + side) for start, side in zip(fill.start, fill.box, strict=True))
    leaf[box] = _inputs_first(tensor, fill.rule.how).reshape(fill.box)
    return leaf


@functools.partial(jax.jit, static_argnames=("how", "box", "where"), donate_argnums=0)
def _place(
    leaf: jax.Array, tensor: jax.Array, start: tuple[int, ...], how: str, box: tuple[int, ...], where: Sharding
) -> jax.Array:
    values = _inputs_first(tensor, how).astype(leaf.dtype).reshape(box)
    filled = jax.lax.dynamic_update_slice(leaf, values, start)
    return jax.lax.with_sharding_constraint(filled, where) if isinstance(where, NamedSharding) else filled


def _inputs_first(x: Any, how: str) -> Any:
    """A tensor of the file with inputs before outputs, as ours are."""
    if how in ("flat", "table"):
        return x
    if how in ("patch", "conv") and x.ndim == 4:
        return x.transpose(2, 3, 1, 0)
    return x.reshape(x.shape[0], -1).T
