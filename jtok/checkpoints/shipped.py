"""Where the small models that come with jtok lie in the package."""

from __future__ import annotations

import importlib.resources

#: `config.weights`, or `--weights`, of the small tower that comes with jtok.
SHIPPED = "shipped"


def resolve(weights: str) -> str:
    """Path of `config.weights`; "shipped" is the tower inside the package."""
    if weights != SHIPPED:
        return weights
    return str(importlib.resources.files("jtok") / "assets" / "scenes.safetensors")
