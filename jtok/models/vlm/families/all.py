"""Every family by name: whatever folder beside this file has a `family.py` with its `FAMILY`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

import jtok.models.vlm.families
from jtok.errors import UserError

if TYPE_CHECKING:  # a record imports `processing`, whose processor looks records up here
    from jtok.models.vlm.family import Family


@cache
def families() -> dict[str, Family]:
    """All families by their `model_type`, in alphabetical order."""
    root = jtok.models.vlm.families
    folders = [module.name for module in pkgutil.iter_modules(root.__path__) if module.ispkg]
    records = [importlib.import_module(f"{root.__name__}.{folder}.family").FAMILY for folder in folders]
    return {family.name: family for family in sorted(records, key=lambda family: family.name)}


def find(model_type: object, source: str = "config.json") -> Family:
    """The family of that `model_type`, which `source` states; raises UserError with the known ones."""
    known = families()
    if model_type not in known:
        raise UserError(f"{source} is of model type {model_type!r}; the vision-language models are {', '.join(known)}.")
    return known[model_type]
