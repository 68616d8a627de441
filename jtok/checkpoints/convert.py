"""Turns the tensors of a released checkpoint into ours: finds each one's place, checks all names and shapes, reads."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jtok.checkpoints.names import HEADS, IGNORED, Rule, split_name
from jtok.checkpoints.safetensor_files import Weights, check_names, wrong_shape

Shape = tuple[int, ...]
Slot = tuple[str, int | None]  # path of our tensor, and the layer if it is stacked over layers


def convert(weights: Weights, config: Any, table: Sequence[Rule], wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our tensors (dotted path to float32 array of the shape of `wanted[path]`) from a checkpoint that `table` names.

    Raises UserError with all unknown and missing tensors, or naming a tensor of the wrong shape and both shapes.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in wanted.items()}
    found = _find(weights, config, table, shapes)
    for name, rule, (path, _) in found:
        needed = _in_file(rule, _view(rule, config, shapes[path]), config)
        if not _agree(rule, weights.shapes[name], needed):
            raise wrong_shape(weights, name, weights.shapes[name], needed)
    ours = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    for name, rule, (path, layer) in found:
        place = ours[path] if layer is None else ours[path][layer]
        at = rule.at(config)
        place[at] = _turned(rule, weights.read(name), config).reshape(place[at].shape)
    return ours


def _find(
    weights: Weights, config: Any, table: Sequence[Rule], shapes: Mapping[str, Shape]
) -> list[tuple[str, Rule, Slot]]:
    """Which tensor of the file fills which slot, by which rule."""
    by_name: dict[tuple[bool, str], list[Rule]] = defaultdict(list)
    for rule in table:
        for spelling in rule.names:
            by_name[rule.in_layers, spelling].append(rule)
    found, unknown, filled = [], [], Counter()
    for name in sorted(weights.shapes):
        layer, rest = split_name(name)
        if IGNORED.search(name):
            continue
        rules = by_name[layer is not None, rest]
        known = bool(rules) and (layer is None or layer < config.depth)
        for rule in rules if known else ():
            if rule.path not in shapes and rule.path.startswith(HEADS):
                continue
            slot = rule.path, layer
            size = _size(rule, config, shapes)
            if size == 0 or filled[slot] + size > math.prod(_of_layer(rule, shapes[rule.path])):
                known = False
                continue
            filled[slot] += size
            found.append((name, rule, slot))
        if not known:
            unknown.append(name)
    check_names(weights, missing=list(_missing(config, table, shapes, found, filled)), unknown=unknown)
    return found


def _missing(
    config: Any, table: Sequence[Rule], shapes: Mapping[str, Shape], found: list, filled: Counter
) -> Iterator[str]:
    """The first spelling of every tensor that would fill what is not filled yet."""
    done = {(id(rule), slot) for _, rule, slot in found}
    filled = Counter(filled)
    for rule in table:
        size = _size(rule, config, shapes)
        for layer in range(config.depth) if rule.in_layers else (None,):
            slot = rule.path, layer
            if size == 0 or (id(rule), slot) in done:
                continue
            if filled[slot] + size <= math.prod(_of_layer(rule, shapes[rule.path])):
                filled[slot] += size
                yield rule.names[0] if layer is None else f"layers.{layer}.{rule.names[0]}"


def _of_layer(rule: Rule, shape: Shape) -> Shape:
    return shape[1:] if rule.in_layers else shape


def _view(rule: Rule, config: Any, shape: Shape) -> Shape:
    """Shape of the part of our tensor (of one layer) that the rule fills."""
    return np.broadcast_to(np.float32(0), _of_layer(rule, shape))[rule.at(config)].shape


def _size(rule: Rule, config: Any, shapes: Mapping[str, Shape]) -> int:
    return math.prod(_view(rule, config, shapes[rule.path])) if rule.path in shapes else 0


def _in_file(rule: Rule, view: Shape, config: Any) -> Shape:
    """Shape of the file's tensor that fills `view`."""
    if rule.how == "patch" and not config.packed:
        return config.width, config.channels, config.patch, config.patch
    if rule.how == "flat":
        table = rule.path in ("position", "special", "pool.probe") and view[0] > 1
        shape = view if table else (math.prod(view),)
    else:
        inputs = math.prod(view[:-1]) if rule.how == "heads" else view[0]
        shape = math.prod(view) // inputs, inputs
    start, stop = rule.thirds
    return shape[0] * 3 // (stop - start), *shape[1:]


def _agree(rule: Rule, given: Shape, needed: Shape) -> bool:
    if rule.how == "flat":  # tables and tokens come with leading axes of size one
        while len(given) > len(needed) and given[0] == 1:
            given = given[1:]
    return given == needed


def _turned(rule: Rule, x: np.ndarray, config: Any) -> np.ndarray:
    """The file's tensor with inputs before outputs, as ours are."""
    start, stop = rule.thirds
    if (start, stop) != (0, 3):
        x = x[start * len(x) // 3 : stop * len(x) // 3]
    if rule.how == "flat":
        return x
    return x.transpose(2, 3, 1, 0) if rule.how == "patch" and not config.packed else x.T
