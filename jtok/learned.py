"""What is learned in a reducer or a slot of a plan: modules, alone or inside of frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx


@dataclasses.dataclass(frozen=True)
class Emptied:
    """The place of a module whose parameters were taken out."""

    graphdef: Any


def modules(part: Any, kind: type = nnx.Module) -> dict[str, Any]:
    """Path -> module: "" for a module, `.first`, `.second.reducer` ... for those in fields of a frozen dataclass."""
    if isinstance(part, kind):
        return {"": part}
    if not dataclasses.is_dataclass(part):
        return {}
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {f".{name}{path}": found for name, value in fields.items() for path, found in modules(value, kind).items()}


def put(part: Any, found: Mapping[str, Any], path: str) -> Any:
    """`part` with what `found` holds (by the paths of `modules`, after `path`) in the places of its modules."""
    if path in found:
        return found[path]
    if not dataclasses.is_dataclass(part) or not any(name.startswith(f"{path}.") for name in found):
        return part
    fields = [field.name for field in dataclasses.fields(part)]
    inner = [name for name in fields if any(k == f"{path}.{name}" or k.startswith(f"{path}.{name}.") for k in found)]
    return dataclasses.replace(part, **{name: put(getattr(part, name), found, f"{path}.{name}") for name in inner})
