"""What a plan holds beside its sites, as lines of text."""

from __future__ import annotations

import dataclasses

from jtok.plan import SLOTS, Plan


def slot_lines(plan: Plan) -> list[str]:
    """One line for each slot that the plan fills, `cache: SmallestKeys(keep=0.5)`; modules by class alone."""
    return [f"{slot}: {_described(part)}" for slot in SLOTS if (part := getattr(plan, slot)) is not None]


def _described(part: object) -> str:
    name = type(part).__name__
    if not dataclasses.is_dataclass(part):
        return name
    fields = ((f.name, getattr(part, f.name)) for f in dataclasses.fields(part) if f.repr)
    return f"{name}({', '.join(f'{field}={value}' for field, value in fields if value is not None)})"
