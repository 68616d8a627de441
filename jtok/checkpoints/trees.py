"""Names of parameters: dotted paths to the leaves of nested dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths to leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
