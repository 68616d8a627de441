"""jtok: visual token reduction and adaptive image tokenizers in JAX.

The public names are loaded when first used, so that `import jtok` takes no time (jax takes a second or more).
"""

import importlib
from typing import Any

from jtok.version import __version__

_HOME = {
    "Claim": "jtok.registry",
    "Conversation": "jtok.models.vlm.conversation",
    "Plan": "jtok.plan",
    "Reducer": "jtok.reducer",
    "Signals": "jtok.signals",
    "Site": "jtok.sites",
    "Target": "jtok.target",
    "Tokens": "jtok.tokens",
    "UserError": "jtok.errors",
    "VLM": "jtok.models.vlm.model",
    "catalogue": "jtok.methods.catalogue",
    "load": "jtok.models.vlm.model",
    "load_tower": "jtok.models.towers.open",
    "make_mesh": "jtok.sharding",
    "make_plan": "jtok.methods.catalogue",
    "method": "jtok.registry",
    "place": "jtok.sharding",
    "reduce": "jtok.methods.reduce",
}

#: Names that are called otherwise where they are defined.
_CALLED = {"catalogue": "methods"}

__all__ = [
    "Claim",
    "Conversation",
    "Plan",
    "Reducer",
    "Signals",
    "Site",
    "Target",
    "Tokens",
    "UserError",
    "VLM",
    "__version__",
    "catalogue",
    "load",
    "load_tower",
    "make_mesh",
    "make_plan",
    "method",
    "place",
    "reduce",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jtok' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), _CALLED.get(name, name))
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
