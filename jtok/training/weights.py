"""Weights that come in and go out of a run: towers, and the learned reducers of a plan."""

from __future__ import annotations

import importlib.resources
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jtok.models.load import load_params, save_params
from jtok.models.reducer_files import load_reducer, save_reducer

if TYPE_CHECKING:
    from jtok.training.classify import Classify

__all__ = ["SHIPPED", "export", "load_reducer", "load_tower", "resolve", "save_reducer"]

#: `config.weights` of the small tower that comes with jtok.
SHIPPED = "shipped"


def resolve(weights: str) -> str:
    """Path of `config.weights`; "shipped" is the tower inside the package."""
    if weights != SHIPPED:
        return weights
    return str(importlib.resources.files("jtok") / "assets" / "scenes.safetensors")


def load_tower(weights: str, config, like: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a tower from `config.weights` (see `jtok.models.load`)."""
    return load_params(resolve(weights), config, like)


def export(task: Classify, params: Mapping[str, Any], path: str | os.PathLike, storage: str = "float32") -> None:
    """Writes the tower to `path`; where the plan has learned reducers, those go to a file beside, `*.reducer.*`."""
    facts = {"jtok.plan": json.dumps(task.config.plan.to_dict()), "jtok.data": json.dumps(task.config.data.to_dict())}
    save_params(path, params["model"], task.model, facts, storage=storage)
    if params["plan"]:
        root, ending = os.path.splitext(path)
        save_reducer(f"{root}.reducer{ending}", params["plan"], facts)
