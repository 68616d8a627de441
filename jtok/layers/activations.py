"""The activation functions, and what transformers calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array

from jtok.errors import UserError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}

#: Our names -> those in transformers' configs, the first of which is written to exported ones.
TRANSFORMERS_NAMES: dict[str, tuple[str, ...]] = {
    "gelu": ("gelu",),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new"),
    "quick_gelu": ("quick_gelu",),
    "silu": ("silu",),
}


def activation_named(name: str, source: object, where: str = "") -> str:
    """Our name of the activation that transformers calls `name`.

    source: the checkpoint whose config has it; where: the part of the model, such as "in its tower". Both are for the
    message. Raises UserError for an activation that jtok does not have.
    """
    ours = {theirs: ours for ours, names in TRANSFORMERS_NAMES.items() for theirs in names}
    if name not in ours:
        place = f" {where}" if where else ""
        raise UserError(f"'{source}' uses the activation '{name}'{place}: jtok has {', '.join(ours)}.")
    return ours[name]
