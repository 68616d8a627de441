"""MLPs, plain and gated: as modules, and as functions for layers that hold the linear maps themselves.

Decoders, Qwen's tower and others have `up` and `down` beside their attention, not in a separate module, and files
have parameters under these paths; such layers call the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jtok.layers.activations import ACTIVATIONS

Linear = Callable[[Array], Array]


def mlp(x: Float[Array, "... D"], up: Linear, down: Linear, act: str) -> Float[Array, "... E"]:
    """down(act(up(x)))."""
    return down(ACTIVATIONS[act](up(x)))


def gated(gate: Float[Array, "... M"], value: Float[Array, "... M"], act: str) -> Float[Array, "... M"]:
    """act(gate) * value: the hidden features of a gated MLP ("GLU Variants Improve Transformer", arXiv:2002.05202)."""
    return ACTIVATIONS[act](gate) * value


def gated_mlp(x: Float[Array, "... D"], up: Linear, down: Linear, act: str) -> Float[Array, "... E"]:
    """down(act(gate) * value), where `up` makes gate and value: [..., 2, M], or [..., 2 M] with the gate first."""
    h = up(x)
    gate, value = (h[..., 0, :], h[..., 1, :]) if h.ndim > x.ndim else jnp.split(h, 2, -1)
    return down(gated(gate, value, act))


def gated_maps(width: int, hidden: int, **kinds: Any) -> tuple[nnx.LinearGeneral, nnx.Linear]:
    """`up` to gate and value [2, hidden] and `down` of a gated MLP. kinds: what every linear map is made with."""
    return nnx.LinearGeneral(width, (2, hidden), **kinds), nnx.Linear(hidden, width, **kinds)


class MLP(nnx.Module):
    """Two linear maps over the last axis, D -> hidden -> E, with an activation between.

    kinds: what both maps are made with, such as `dtype`, `use_bias` and `rngs`.
    """

    def __init__(self, inputs: int, hidden: int, out: int, act: str = "gelu", **kinds: Any):
        self.act = act
        self.up, self.down = nnx.Linear(inputs, hidden, **kinds), nnx.Linear(hidden, out, **kinds)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        return mlp(x, self.up, self.down, self.act)


class GatedMLP(nnx.Module):
    """As `MLP`, with hidden features act(gate) * value; one map makes both, the gate first."""

    def __init__(self, inputs: int, hidden: int, out: int, act: str = "silu", **kinds: Any):
        self.act = act
        self.up, self.down = nnx.Linear(inputs, 2 * hidden, **kinds), nnx.Linear(hidden, out, **kinds)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        return gated_mlp(x, self.up, self.down, self.act)
