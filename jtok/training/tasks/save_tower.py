"""Writes what the task `classify` has trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from jtok.checkpoints.reducer_files import save_reducer
from jtok.models.towers.load import save_params
from jtok.training.tasks.classify import Classify


def export(task: Classify, params: Mapping[str, Any], path: str | os.PathLike, storage: str = "float32") -> None:
    """Writes the tower to `path`; where the plan has learned reducers, those go to a file next to it, `*.reducer.*`."""
    facts = {"jtok.plan": json.dumps(task.config.plan.to_dict()), "jtok.data": json.dumps(task.config.data.to_dict())}
    save_params(path, params["model"], task.model, facts, storage=storage)
    if params["plan"]:
        root, ending = os.path.splitext(path)
        save_reducer(f"{root}.reducer{ending}", params["plan"], facts)
