"""The training state, and parameters by name."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jtok.sharding import leaf_name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything an update reads and writes, except the data iterator.

    step: updates done. params: trainable leaves in float32, frozen ones as the task made them. ema: averaged
    parameters shaped like `params`, or None. opt_state: over the trainable leaves only, by name. key: never changes;
    the update `step` uses `fold_in(key, step)`.
    """

    step: Int[Array, ""]
    params: PyTree[Array]
    ema: PyTree[Array] | None
    opt_state: PyTree[Array]
    key: Array

    @property
    def eval_params(self) -> PyTree[Array]:
        """The averaged parameters where averaging is on, else the parameters."""
        return self.params if self.ema is None else self.ema


def named_leaves(tree: PyTree) -> dict[str, Array]:
    """The leaves of a tree by dotted name, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {leaf_name(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the tree share a dotted name: avoid dots in the names of parameters")
    return named


def with_leaves(tree: PyTree, leaves: Mapping[str, Array]) -> PyTree:
    """`tree` with the leaves named in `leaves` exchanged for those; the others stay."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(leaf_name(path), leaf), tree)


def trainable_names(params: PyTree[Array], mask: PyTree[bool] | None) -> tuple[str, ...]:
    """Names of the leaves where `mask` (a tree of bools or a prefix of one; None = all) is true."""
    if mask is None:
        return tuple(named_leaves(params))
    full = jax.tree.leaves(jax.tree.broadcast(mask, params))
    return tuple(name for name, learns in zip(named_leaves(params), full, strict=True) if learns)


def create(params: PyTree[Array], names: tuple[str, ...], optimizer, *, ema: bool, key: Array) -> TrainState:
    """The state before the first update. Leaves are copied, because updates donate their buffers.

    optimizer: an Optax transformation over `{name: array}`; names: the leaves that learn, cast to float32 here.
    """
    learns = set(names)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.array(leaf, jnp.float32 if leaf_name(path) in learns else None, copy=True), params
    )
    leaves = named_leaves(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params) if ema else None,
        opt_state=optimizer.init({name: leaves[name] for name in names}),
        key=jnp.array(key, copy=True),
    )
