"""Weights that come in and go out of a run: towers, and the learned reducers of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jtok.checkpoints.reducer_files import load_reducer, save_reducer
from jtok.checkpoints.shipped import SHIPPED, resolve
from jtok.models.towers.load import load_params

__all__ = ["SHIPPED", "load_reducer", "load_tower", "resolve", "save_reducer"]


def load_tower(weights: str, config, like: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a tower from `config.weights` (see `jtok.models.towers.load`)."""
    return load_params(resolve(weights), config, like)
