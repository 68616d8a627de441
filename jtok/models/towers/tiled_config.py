"""Shape of the tower of Llama-3.2-Vision (arXiv:2407.21783)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from jtok.layers.activations import Activation
from jtok.target import Target

#: Tokens of a tile are filled up to a multiple of this.
MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class TiledConfig:
    """Shape of the tower; the defaults are those of Llama-3.2-11B-Vision, whose tiles have 560 pixels a side."""

    image: int = 560  # side of a tile in pixels
    patch: int = 14
    width: int = 1280
    local: int = 32  # blocks before the second norm
    deep: int = 8  # gated blocks after it
    heads: int = 16
    mlp: int = 5120
    channels: int = 3
    tiles: int = 4  # of every image, most of them padding
    aspects: int = 8  # arrangements of tiles; 0 is the id of none
    taps: tuple[int, ...] = (3, 7, 15, 23, 30)  # local blocks whose outputs are part of the tower's
    act: Activation = "gelu"
    eps: float = 1e-5
    remat: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    mlp_kind: Literal["mlp"] = "mlp"
    packed: Literal[False] = False  # images come whole

    @property
    def compute(self) -> Any:
        """dtype of activations; parameters are float32."""
        return jnp.dtype(self.dtype)

    @property
    def depth(self) -> int:
        """All blocks; the global ones are numbered after the local ones."""
        return self.local + self.deep

    @property
    def side(self) -> int:
        """Patches a side of a tile."""
        return self.image // self.patch

    @property
    def fill(self) -> int:
        """Slots that fill a tile up, of the whole grid."""
        return -(self.side**2 + 1) % MULTIPLE

    @property
    def outputs(self) -> int:
        """Features of a token at the tower's output."""
        return self.width * (1 + len(self.taps))

    def target(self) -> Target:
        """What a method needs to know to make its plan for a tile."""
        return Target(self.depth, (self.side, self.side), self.width, self.heads, 1 + self.fill)
