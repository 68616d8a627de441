"""Rotary positions: plain, stretched for longer contexts, and multimodal (time, row, column)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Settings of rotary positions (RoFormer, arXiv:2104.09864).

    kind: `linear` divides all frequencies by `factor` (arXiv:2306.15595); `llama3` only those whose wavelength exceeds
    `context / low`, none of those below `context / high`, and blends between (arXiv:2407.21783). sections: how many
    frequencies rotate with time, row and column (arXiv:2409.12191); empty = positions are single numbers.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192
    sections: tuple[int, ...] = ()

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per step of each pair of channels, [Dh/2] float32."""
        plain = (1.0 / self.theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)).astype(np.float32)
        if self.kind == "default":
            return plain
        slow = plain / np.float32(self.factor)
        if self.kind == "linear":
            return slow
        rotations = self.context * plain / (2 * math.pi)  # within the context it was trained for
        share = np.clip((rotations - self.low) / (self.high - self.low), 0, 1)
        return ((1 - share) * slow + share * plain).astype(np.float32)


def rotation(
    position: Num[Array, "B N P"], head_dim: int, rotary: Rotary
) -> tuple[Float[Array, "B N Dh2"], Float[Array, "B N Dh2"]]:
    """(cosines, sines) float32 for each position and pair of channels; P is 1, or 3 where there are sections."""
    sections = rotary.sections or (head_dim // 2,)
    axis = np.repeat(np.arange(len(sections)), sections)
    angle = position.astype(jnp.float32)[..., axis] * rotary.frequencies(head_dim)
    return jnp.cos(angle), jnp.sin(angle)


def axial_rotation(
    position: Num[Array, "B N 2"], head_dim: int, theta: float
) -> tuple[Float[Array, "B N Dh2"], Float[Array, "B N Dh2"]]:
    """(cosines, sines) float32 for patches at (row, column): half of the frequencies rotate with each."""
    angle = position.astype(jnp.float32)[..., None] * Rotary(theta).frequencies(head_dim // 2)
    angle = angle.reshape(*position.shape[:-1], head_dim // 2)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "B N H Dh"], rope: tuple[Array, Array]) -> Float[Array, "B N H Dh"]:
    """Rotates channel i with channel i + Dh/2, in float32; the dtype stays."""
    cos, sin = (t[:, :, None] for t in rope)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
