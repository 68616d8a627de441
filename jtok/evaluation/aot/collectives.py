"""What a compiled program sends between chips, read from its HLO text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one chip takes part in sending, by kind of collective.

    `bytes` counts the result of every all-reduce, all-gather, all-to-all and permutation, and the operand of every
    reduce-scatter, a loop's body as often as it runs. `calls` counts them. `unknown_loops`: loops with collectives
    whose length the text does not tell, counted once.
    """

    bytes: dict[str, int]
    calls: dict[str, int]
    unknown_loops: int

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    def seconds(self, chips: int, links: float) -> float:
        """Time on a ring: an all-reduce passes every byte twice, the others once; nothing between equal chips."""
        passes = {"all-reduce": 2}
        share = (chips - 1) / chips
        return sum(passes.get(kind, 1) * share * size for kind, size in self.bytes.items()) / links


def traffic(text: str) -> Traffic:
    """Counts the collectives of a compiled module (`jax.stages.Compiled.as_text()`)."""
    computations, entry = _computations(text)
    bytes_, calls, unknown = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), set()
    for kind, size, times, loops in _walk(computations, entry, 1, ()):
        bytes_[kind] += size * times
        calls[kind] += times
        unknown.update(loops)
    return Traffic({k: n for k, n in bytes_.items() if n}, {k: n for k, n in calls.items() if n}, len(unknown))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by name, and the name of the first that runs."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return found, entry


def _walk(computations, name: str, times: int, loops: tuple[str, ...]) -> Iterator[tuple[str, int, int, tuple]]:
    """(kind, bytes, how often, loops of unknown length around it) of every collective that a computation reaches."""
    for line in computations.get(name, ()):
        operation = _OPERATION.match(line)
        if not operation:
            continue
        result, opcode = operation.groups()
        kind = opcode.removesuffix("-start")
        if kind in KINDS:
            yield kind, _size(kind, opcode, result, line), times, loops
        elif opcode == "while":
            condition, body = (re.search(rf"{part}=%?([\w.\-]+)", line)[1] for part in ("condition", "body"))
            trips = _trips(computations[condition])
            around = loops if trips else (*loops, body)
            yield from _walk(computations, body, times * (trips or 1), around)
        else:
            for called in re.findall(r"(?:calls|called_computations|branch_computations)=\{?%?([\w.\-]+)", line):
                yield from _walk(computations, called, times, loops)


def _size(kind: str, opcode: str, result: str, line: str) -> int:
    arrays = [_bytes(*array) for array in _ARRAY.findall(result)]
    if opcode.endswith("-start") and kind != "all-reduce":  # (operands, results, ...): the larger of the two
        return max(arrays)
    if kind == "reduce-scatter":
        groups = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]|mesh\[[^\]]*?=(\d+)\])", line)
        members = groups and (len(groups[1].split(",")) if groups[1] else int(groups[2] or groups[3]))
        return sum(arrays) * (members or 1)
    return sum(arrays)


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(_BITS.search(dtype)[0])
    elements = 1
    for side in filter(None, shape.split(",")):
        elements *= int(side)
    return elements * bits // 8


def _trips(condition: list[str]) -> int | None:
    """Length of a loop that counts from 0 to a constant, as scans become."""
    constants = [m[1] for line in condition if (m := re.search(r"= s(?:32|64)\[\]\S* constant\((\d+)\)", line))]
    counts = any("direction=LT" in line for line in condition)
    return int(constants[0]) if len(constants) == 1 and counts else None
