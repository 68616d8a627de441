"""The learned parts of a reducer or of a plan's slot: modules, alone or inside frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx


@dataclasses.dataclass(frozen=True)
class Emptied:
    """A placeholder for a module whose parameters were removed."""

    graphdef: Any


def modules(part: Any, kind: type = nnx.Module) -> dict[str, Any]:
    """Path -> module: "" for a module, `.first`, `.second.reducer` ... for those in fields of a frozen dataclass."""
    if isinstance(part, kind):
        return {"": part}
    if not dataclasses.is_dataclass(part):
        return {}
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {f".{name}{path}": module for name, value in fields.items() for path, module in modules(value, kind).items()}


def put(part: Any, new: Mapping[str, Any], path: str) -> Any:
    """`part` with its modules replaced by those in `new` (keyed by the paths of `modules`, prefixed with `path`)."""
    if path in new:
        return new[path]
    if not dataclasses.is_dataclass(part) or not any(name.startswith(f"{path}.") for name in new):
        return part
    fields = [field.name for field in dataclasses.fields(part)]
    inner = [name for name in fields if any(k == f"{path}.{name}" or k.startswith(f"{path}.{name}.") for k in new)]
    return dataclasses.replace(part, **{name: put(getattr(part, name), new, f"{path}.{name}") for name in inner})
