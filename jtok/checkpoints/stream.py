"""Reads checkpoints tensor by tensor into parameters that already have their final shape, dtype and place.

On the host there is never more than one tensor of the file beside the parameters; transposing and casting happen where
the parameters live. All names are checked, over all parts of the model, before anything is read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import safetensors
from jax.sharding import NamedSharding, Sharding

from jtok.checkpoints.names import Rule
from jtok.checkpoints.safetensor_files import Weights, check_names, wrong_shape
from jtok.checkpoints.trees import flatten
from jtok.checkpoints.vlm_names import IGNORED, split_part


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a model: its name table, its config, how deep it is, and what may be left in the file unread."""

    table: Sequence[Rule]
    config: Any
    depth: int = 0
    spare: tuple[str, ...] = ()  # paths of ours, by their beginning, that this model may lack though the file has them
    cut: bool = False  # the file may hold more layers than the model uses
    #: Number of a layer in the file -> (part, number there), where some of its layers make a stack of their own.
    stacks: Mapping[int, tuple[str, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Fill:
    """A tensor of the file, and the box of our tensor that it fills."""

    name: str
    path: str
    how: str
    start: tuple[int, ...]
    box: tuple[int, ...]


def read(weights: Weights, parts: Mapping[str, Part], like: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the structure, shapes, dtypes (and shardings, where its leaves have them) of `like`.

    `like` is a nested dict of arrays or `jax.ShapeDtypeStruct`, its first level the parts. Raises UserError with all
    missing and unknown tensors in one sentence, or for a tensor of the wrong shape.
    """
    wanted = flatten(like)
    fills = _match(weights, parts, wanted)
    leaves = {}
    for path, leaf in wanted.items():
        leaves[path] = jnp.zeros(leaf.shape, leaf.dtype, device=getattr(leaf, "sharding", None))
    by_file = defaultdict(list)
    for fill in fills:
        by_file[weights.files[fill.name]].append(fill)
    for file, its in by_file.items():
        with safetensors.safe_open(file, "np") as opened:
            for fill in its:
                tensor = opened.get_tensor(fill.name)
                where = leaves[fill.path].sharding
                leaf = _place(leaves[fill.path], tensor, fill.start, fill.how, fill.box, where)
                leaves[fill.path] = leaf.block_until_ready()  # or tensors would queue up in memory
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in wanted])


@functools.partial(jax.jit, static_argnames=("how", "box", "where"), donate_argnums=0)
def _place(
    leaf: jax.Array, tensor: jax.Array, start: tuple[int, ...], how: str, box: tuple[int, ...], where: Sharding
) -> jax.Array:
    if how == "patch":
        tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    elif how == "conv":
        tensor = tensor.reshape(tensor.shape[0], -1).T
    elif how not in ("flat", "table"):
        tensor = tensor.T
    filled = jax.lax.dynamic_update_slice(leaf, tensor.astype(leaf.dtype).reshape(box), start)
    return jax.lax.with_sharding_constraint(filled, where) if isinstance(where, NamedSharding) else filled


def _match(weights: Weights, parts: Mapping[str, Part], wanted: Mapping[str, Any]) -> list[_Fill]:
    """What fills what; raises UserError if names or shapes do not fit."""
    expected = dict(_expected(parts, wanted))
    fills, unknown, found = [], [], set()
    for name in sorted(weights.shapes):
        if IGNORED.search(name):
            continue
        part, layer, rest = split_part(name)
        if part in parts and layer in parts[part].stacks:
            part, layer = parts[part].stacks[layer]
        rules = [r for r in _rules(parts, part, rest) if r.in_layers == (layer is not None)]
        if part in parts and layer is not None and parts[part].cut and layer >= parts[part].depth:
            continue
        places = [(part, layer, id(rule)) for rule in rules]
        known = [place for place in places if place in expected]
        if not known and not any(r.path.startswith(parts[part].spare) for r in rules if parts[part].spare):
            unknown.append(name)
        for place in known:
            found.add(place)
            fills.append((name, *expected[place]))
    missing = [_spell(place, rule) for place, (rule, _) in expected.items() if place not in found]
    check_names(weights, missing=missing, unknown=unknown)
    return [_fill(weights, parts, wanted, *row) for row in fills]


def _rules(parts: Mapping[str, Part], part: str, rest: str) -> list[Rule]:
    return [rule for rule in parts[part].table if rest in rule.names] if part in parts else []


def _spell(place: tuple, rule: Rule) -> str:
    part, layer, _ = place
    return f"{part}: {rule.names[0]}" if layer is None else f"{part}: layers.{layer}.{rule.names[0]}"


def _expected(parts: Mapping[str, Part], wanted: Mapping[str, Any]) -> Iterator[tuple[tuple, tuple[Rule, tuple]]]:
    """((part, layer, rule), (rule, (part, layer))) for everything that the model needs."""
    for name, part in parts.items():
        for rule in part.table:
            if _join(name, rule.path) in wanted:
                for layer in range(part.depth) if rule.in_layers else (None,):
                    yield (name, layer, id(rule)), (rule, (name, layer))


def _join(part: str, path: str) -> str:
    return f"{part}.{path}" if path else part


def _fill(weights: Weights, parts: Mapping, wanted: Mapping, name: str, rule: Rule, where: tuple) -> _Fill:
    part, layer = where
    path, config = _join(part, rule.path), parts[part].config
    shape = tuple(wanted[path].shape)
    inner = shape if layer is None else shape[1:]
    start, box = _box(rule.at(config), inner)
    given, size = weights.shapes[name], 1
    for side in box:
        size *= side
    needed = _needed(rule, box, config)
    while rule.how == "flat" and len(given) > len(needed) and given[0] == 1:
        given = given[1:]
    if given != needed:
        raise wrong_shape(weights, name, weights.shapes[name], needed)
    if layer is not None:
        start, box = (layer, *start), (1, *box)
    return _Fill(name, path, rule.how, start, box)


def _box(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(start, size along every axis) of the part of an array that an index of numbers and slices names."""
    index = () if index is Ellipsis else index if isinstance(index, tuple) else (index,)
    start, box = [0] * len(shape), list(shape)
    for axis, item in enumerate(index):
        rows = range(*item.indices(shape[axis])) if isinstance(item, slice) else range(item, item + 1)
        start[axis], box[axis] = rows.start, len(rows)
    return tuple(start), tuple(box)


def _needed(rule: Rule, box: tuple[int, ...], config: Any) -> tuple[int, ...]:
    """Shape of the file's tensor that fills a box."""
    size = 1
    for side in box:
        size *= side
    if rule.how == "patch" and not config.packed:
        return config.width, config.channels, config.patch, config.patch
    if rule.how == "conv":
        return config.kernel
    if rule.how == "table":
        return tuple(box)
    if rule.how == "flat":
        return tuple(box) if rule.path in ("position", "embedding") else (size,)
    inputs = size // box[-1] if rule.how == "heads" else box[0]
    return size // inputs, inputs
