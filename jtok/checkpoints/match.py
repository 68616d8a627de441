"""Which tensor of a checkpoint fills which part of our parameters, by tables of rules; all names and shapes checked."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jtok.checkpoints.rules import Rule, Shape
from jtok.checkpoints.safetensor_files import Weights, check_names, wrong_shape
from jtok.errors import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a model: its table of rules, its config, how deep it is, and what may be left in the file unread."""

    table: Sequence[Rule]
    config: Any
    depth: int = 0
    spare: tuple[str, ...] = ()  # paths of ours, by their beginning, that this model may lack though the file has them
    cut: bool = False  # the file may hold more layers than the model uses
    #: Number of a layer in the file -> (part, number there), where some of its layers form a separate stack.
    stacks: Mapping[int, tuple[str, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Format:
    """How the names of a kind of file are read: `split` cuts one into (part, layer or None, the name in the table).

    left: whether a tensor that no rule names may be left in the file unread.
    """

    split: Callable[[str], tuple[str, int | None, str]] = lambda name: ("", None, name)
    left: Callable[[str], bool] = lambda name: False


@dataclasses.dataclass(frozen=True)
class Fill:
    """A tensor of the file, its rule, and the box of our tensor that it fills: where it begins, and its sides."""

    name: str
    path: str
    rule: Rule
    start: Shape
    box: Shape


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A rule in one layer (or outside of layers) of a part, and the box that it fills."""

    part: str
    layer: int | None
    rule: Rule
    path: str
    start: Shape
    box: Shape  # of one layer

    @property
    def key(self) -> tuple[str, int | None]:
        return self.path, self.layer

    @property
    def spelled(self) -> str:
        named = "" if self.layer is None or "{}" in self.rule.names[0] else f"layers.{self.layer}."
        return f"{f'{self.part}: ' if self.part else ''}{named}{self.rule.spell(self.layer)}"


def match(weights: Weights, parts: Mapping[str, Part], wanted: Mapping[str, Any], form: Format) -> list[Fill]:
    """What fills `wanted`, a mapping of dotted path (beginning with the part's name) to anything with a shape.

    Rules may be alternatives: of those that fill the same box the ones whose tensors the file has are taken. Raises
    UserError with all missing and unknown tensors in one sentence, naming a tensor of the wrong shape and both shapes,
    or for parameters that no rule names.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in wanted.items()}
    slots = list(_slots(parts, shapes))
    space = {slot.key: math.prod(shapes[slot.path][slot.layer is not None :]) for slot in slots}
    by_name = defaultdict(list)
    for slot in slots:
        for name in slot.rule.names:
            key = (slot.part, None, name.format(slot.layer)) if "{}" in name else (slot.part, slot.layer, name)
            by_name[key].append(slot)
    fills, unknown, filled = [], [], Counter()
    for name in sorted(weights.shapes):
        part, layer, rest = form.split(name)
        if part in parts and layer in parts[part].stacks:
            part, layer = parts[part].stacks[layer]
        if part in parts and parts[part].cut and layer is not None and layer >= parts[part].depth:
            continue
        fit = []
        for slot in by_name[part, layer, rest]:
            if filled[slot.key] + math.prod(slot.box) <= space[slot.key]:
                filled[slot.key] += math.prod(slot.box)
                fit.append((name, slot))
        fills += fit
        if not fit and not form.left(name) and not (part in parts and _spare(parts[part], rest, shapes)):
            unknown.append(name)
    _check(weights, slots, [slot for _, slot in fills], filled, space, unknown)
    _check_all_named(weights, shapes, filled)
    return [_fill(weights, parts, name, slot) for name, slot in fills]


def _slots(parts: Mapping[str, Part], shapes: Mapping[str, Shape]) -> Iterator[_Slot]:
    """Every place that a rule can fill, in the order of the tables."""
    for name, part in parts.items():
        for rule in part.table:
            path = ".".join(filter(None, (name, rule.path)))
            if path not in shapes:
                continue
            whole = shapes[path]
            start, box = _box(rule.at(part.config), whole[1:] if rule.in_layers else whole)
            for layer in range(whole[0]) if rule.in_layers else (None,):
                if math.prod(box):
                    yield _Slot(name, layer, rule, path, start, box)


def _spare(part: Part, name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether a tensor belongs to what the model may lack."""
    paths = [rule.path for rule in part.table if part.spare and name in rule.names]
    return any(path.startswith(part.spare) and path not in shapes for path in paths)


def _check(
    weights: Weights, slots: list[_Slot], done: list[_Slot], filled: Counter, space: Mapping, unknown: list[str]
) -> None:
    """Raises UserError for missing tensors, by the first rule that would fill what is empty, and unknown ones."""
    missing, full, taken = [], Counter(filled), {id(slot) for slot in done}
    for slot in slots:
        if id(slot) not in taken and full[slot.key] + math.prod(slot.box) <= space[slot.key]:
            full[slot.key] += math.prod(slot.box)
            missing.append(slot.spelled)
    check_names(weights, missing=missing, unknown=unknown)


def _check_all_named(weights: Weights, shapes: Mapping[str, Shape], filled: Counter) -> None:
    """Raises UserError if parameters are left that no rule fills."""
    sizes: Counter[str] = Counter()
    for (path, _), size in filled.items():
        sizes[path] += size
    nameless = sorted(path for path, shape in shapes.items() if sizes[path] != math.prod(shape))
    if nameless:
        raise UserError(f"files with the names of '{weights.source}' have no {', '.join(nameless)}, the model has.")


def _fill(weights: Weights, parts: Mapping[str, Part], name: str, slot: _Slot) -> Fill:
    config, given = parts[slot.part].config, tuple(weights.shapes[name])
    if not slot.rule.fits(given, slot.box, config):
        raise wrong_shape(weights, name, given, slot.rule.shape_in_file(slot.box, config))
    if slot.layer is None:
        return Fill(name, slot.path, slot.rule, slot.start, slot.box)
    return Fill(name, slot.path, slot.rule, (slot.layer, *slot.start), (1, *slot.box))


def _box(index: Any, shape: Shape) -> tuple[Shape, Shape]:
    """(start, size along every axis) of the part of an array that an index of numbers and slices names."""
    index = () if index is Ellipsis else index if isinstance(index, tuple) else (index,)
    start, box = [0] * len(shape), list(shape)
    for axis, item in enumerate(index):
        rows = range(*item.indices(shape[axis])) if isinstance(item, slice) else range(item, item + 1)
        start[axis], box[axis] = rows.start, len(rows)
    return tuple(start), tuple(box)
