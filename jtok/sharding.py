"""Where arrays live on a mesh of devices: one table names the axes of every parameter, one dict of rules places them.

A mesh has three axes. `data` and `fsdp` share the rows of a batch; `fsdp` also shares the parameters, which are
gathered layer by layer as they are used (ZeRO, arXiv:1910.02054); `tensor` splits heads, hidden units and vocabulary
(Megatron-LM, arXiv:1909.08053). The optimizer's state and averaged parameters have the names and shapes of their
parameters, so the same table places them.
"""

import contextlib
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jtok.errors import UserError
from jtok.kernels.platform import BATCH_AXES

AXES = ("data", "fsdp", "tensor")

#: Logical axis -> the mesh axes that share it. Logical axes without a rule stay whole.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "modulation": ("tensor",),
}

#: End of a parameter's dotted name -> its logical axes, one line for each rank it comes in. The first line that fits
#: counts; behind "blocks." an axis of layers stands before them. What fits no line stays whole: norms and biases of
#: the residual stream, single vectors.
TABLE: Sequence[tuple[str, ...]] = (
    (r"(qkv|kv|q|k|v)\.kernel", "embed part heads head", "embed heads head", "embed heads"),
    (r"(qkv|kv|q|k|v)\.bias", "part heads head", "heads head", "heads"),
    (r"(attention|blocks|pool|first\.\d+|middle|second\.\d+)\.out\.kernel", "heads head embed", "heads embed"),
    (r"modulate\.kernel", "embed modulation"),
    (r"modulate\.bias", "modulation"),
    (r"(up|gate|hidden|projector\.layers\.0)\.kernel", "embed part mlp", "embed mlp"),
    (r"(up|gate|hidden|projector\.layers\.0)\.bias", "part mlp", "mlp"),
    (r"(down|head\.out|time\.out|halting\.out|projector\.layers\.1)\.kernel", "mlp embed"),
    (
        r"(conv\w*|convs\.\d+|grow\.\d+|shortcut|smooth|out)\.kernel",
        "rows columns channels embed",
        "judges rows columns channels embed",
    ),
    (r"embedding", "vocab embed"),
    (r"head(_distill)?(\.kernel)?", "embed vocab"),
    (r"(patch|embed)\.kernel", "inputs embed"),
    (r"(out|to_pixels|narrow|skip)\.kernel|projection", "embed outputs"),
    (r"register_position", "embed tokens"),
    (r"(tile_position|pre_tile|post_tile)", "aspects embed"),
    (r"(\w*position|\w+_tokens?|special|registers|probe|kind|conditions)", "embed rows columns", "tokens embed"),
    (r"round_embedding", "rounds tokens embed"),
    (r"(\w*codebook|pixel_codes)", "codes channels"),
)


def make_mesh(fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with axes `data`, `fsdp`, `tensor` over all devices (of all processes); `data` takes what is left.

    Raises UserError for a size under 1, and for sizes whose product does not divide the devices.
    """
    devices = jax.devices() if devices is None else devices
    for name, size in (("fsdp", fsdp), ("tensor", tensor)):
        if size < 1:
            raise UserError(f"the mesh axis {name} (config.mesh.{name}) is {size}; it must be at least 1.")
    if len(devices) % (fsdp * tensor):
        raise UserError(
            f"a mesh of fsdp {fsdp} times tensor {tensor} (config.mesh) does not divide the {len(devices)} devices:"
            " choose sizes whose product does."
        )
    shape = len(devices) // (fsdp * tensor), fsdp, tensor
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 3, devices=devices)


def leaf_name(path: tuple) -> str:
    """`encoder.blocks.kernel` for a tree path; the `.value` that an nnx variable adds is left out."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


@functools.cache
def logical_axes(name: str, rank: int) -> tuple[str, ...] | None:
    """Names of the axes of the parameter of this dotted name and rank; None where the table does not know it."""
    stacked = ("layers",) if re.search(r"(^|\.)blocks\.", name) else ()
    for pattern, *variants in TABLE:
        if re.search(rf"(^|\.)({pattern})$", name):
            for variant in variants:
                axes = (*stacked, *variant.split())
                if len(axes) == rank:
                    return axes
    return None


def spec(axes: Sequence[str] | None, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Which mesh axes share which axes of an array, by `RULES`.

    An axis of the array that its mesh axes do not divide stays whole, and a mesh axis is used once.
    """
    if axes is None:
        return PartitionSpec()
    entries, used = [], set()
    for name, size in zip(axes, shape, strict=True):
        over = tuple(a for a in RULES.get(name, ()) if a not in used and mesh.shape.get(a, 1) > 1)
        over = over if over and size % math.prod(mesh.shape[a] for a in over) == 0 else ()
        used.update(over)
        entries.append(over if len(over) > 1 else over[0] if over else None)
    return PartitionSpec(*entries)


def shardings(tree: PyTree[Any], mesh: Mesh) -> PyTree[NamedSharding]:
    """Where every leaf of a tree of parameters, or of a training state, lives; leaves need a shape only."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(logical_axes(leaf_name(path), len(leaf.shape)), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def placed(tree: PyTree[Any], mesh: Mesh) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a tree with the places of its leaves, for what reads or compiles to them."""

    def with_place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(with_place, tree, shardings(tree, mesh))


def place(tree: PyTree[Any], mesh: Mesh) -> PyTree[jax.Array]:
    """Parameters on the devices of a mesh, each device getting its own part and no more.

    tree: arrays of numpy or JAX that every process holds whole.
    """

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings(tree, mesh))


def gather(tree: PyTree[Any]) -> PyTree[np.ndarray]:
    """Whole arrays on the host of every process, one after the other; all processes must call it together."""

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


@contextlib.contextmanager
def on_mesh_of(params: PyTree[Any]) -> Iterator[None]:
    """What is traced inside knows the mesh on which parameters live, if they live on one: its ops split the batch as
    the mesh does, and take no kernel where the compiler has to split them."""
    where = getattr(jax.tree.leaves(params)[0], "sharding", None)
    with jax.set_mesh(where.mesh) if isinstance(where, NamedSharding) else contextlib.nullcontext():
        yield


def whole(mesh: Mesh) -> NamedSharding:
    """Every device holds all of the array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The first axis is a batch's: `data` and `fsdp` share it."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def row_parts(mesh: Mesh) -> int:
    """In how many equal parts the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def local_parts(mesh: Mesh) -> tuple[int, ...]:
    """Which of the parts of a batch this process's devices hold, in order. With `tensor` across processes several of
    them hold one part."""
    count = row_parts(mesh)
    held = rows(mesh).addressable_devices_indices_map((count,))
    return tuple(sorted({index[0].start or 0 for index in held.values()}))


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
    """Raises UserError for a global batch that the mesh cannot share evenly."""
    parts = row_parts(mesh)
    if batch % (parts * accumulate):
        times = f" times {accumulate} micro-batches" if accumulate > 1 else ""
        raise UserError(
            f"a batch of {batch} (config.train.batch) must be a multiple of the {parts} parts{times} in which"
            f" the mesh shares it (data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})."
        )
