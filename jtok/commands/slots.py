"""Text descriptions of what a plan holds besides its sites."""

from __future__ import annotations

import dataclasses

from jtok.plan import SLOTS, Plan


def slots_of(plan: Plan) -> dict[str, str]:
    """Slot -> what fills it, `{"cache": "SmallestKeys(keep=0.5)"}`; modules by class alone."""
    held = {slot: _described(part) for slot in SLOTS if (part := getattr(plan, slot)) is not None}
    if plan.projector_count is not None:
        held["projector"] = f"{held.get('projector', 'of the model')}, {plan.projector_count} tokens"
    if plan.positions is not None:
        held["positions"] = plan.positions
    if plan.embed is not None:
        held["embed"] = "embeddings of the question by another model"
    training = plan.training
    trains = {"extra losses": training.objective, "a teacher": training.needs_teacher, "variants": training.variants}
    if any(trains.values()):
        held["training"] = ", ".join(name for name, value in trains.items() if value)
    return held


def _described(part: object) -> str:
    name = type(part).__name__
    if not dataclasses.is_dataclass(part):
        return name
    fields = ((f.name, getattr(part, f.name)) for f in dataclasses.fields(part) if f.repr)
    return f"{name}({', '.join(f'{field}={value}' for field, value in fields if value is not None)})"
