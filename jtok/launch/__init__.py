"""Experiments of many runs, on this machine or in a cloud: see `jtok.launch.experiment` for what one consists of."""

import importlib
from typing import Any

_HOME = {"Report": "jtok.launch.report", "main": "jtok.launch.main"}

__all__ = ["Report", "main"]


def __getattr__(name: str) -> Any:
    # On first use, so that a unit, which runs a module of this package, imports no more than it needs.
    if name not in _HOME:
        raise AttributeError(f"module 'jtok.launch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
