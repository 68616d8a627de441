"""Rectified flow: a network predicts the velocity from data to noise, and integrating it backwards yields an image.

"Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow", arXiv:2209.03003. Guidance:
classifier-free, arXiv:2207.12598, and adaptive projected (APG), arXiv:2410.02416.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

#: (x [B,...], t [B] in [0,1]) -> velocity [B,...]
Velocity = Callable[[Float[Array, "B ..."], Float[Array, " B"]], Float[Array, "B ..."]]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """scale 1: no guidance. projected: APG with momentum, a bound on the norm, and eta times the component parallel to
    the conditional velocity."""

    scale: float = 1.0
    projected: bool = False
    eta: float = 0.0
    bound: float = 2.5
    momentum: float = -0.5

    def __call__(self, with_code: Array, without: Array, running: Array) -> tuple[Array, Array]:
        """(guided velocity, the running difference for the next step)."""
        difference = with_code - without
        if not self.projected:
            return without + self.scale * difference, running
        running = difference + self.momentum * running
        axes = tuple(range(1, running.ndim))
        norm = jnp.sqrt(jnp.square(running).sum(axes, keepdims=True))
        bounded = running * jnp.minimum(1.0, self.bound / jnp.maximum(norm, 1e-12))
        unit = with_code / jnp.maximum(jnp.sqrt(jnp.square(with_code).sum(axes, keepdims=True)), 1e-12)
        parallel = (bounded * unit).sum(axes, keepdims=True) * unit
        return with_code + (self.scale - 1) * (bounded - parallel + self.eta * parallel), running


def noised(x: Float[Array, "B ..."], key: Array) -> tuple[Array, Float[Array, " B"], Array]:
    """(x_t between x and noise, t, the velocity to predict) for a training step: t = sigmoid of a standard normal."""
    level, draw = jax.random.split(key)
    t = jax.nn.sigmoid(jax.random.normal(level, (x.shape[0],)))
    noise = jax.random.normal(draw, x.shape)
    wide = t.reshape(-1, *[1] * (x.ndim - 1))
    return wide * noise + (1 - wide) * x, t, noise - x


def integrate(
    with_code: Velocity,
    noise: Float[Array, "B ..."],
    steps: int,
    *,
    without: Velocity | None = None,
    guidance: Guidance | None = None,
) -> Float[Array, "B ..."]:
    """Euler steps from noise at t = 1 to data at t = 0; `without` is the unconditional velocity, for guidance."""

    def step(i, state):
        x, running = state
        t = jnp.broadcast_to((steps - i) / steps, x.shape[:1])
        v = with_code(x, t)
        if guidance is not None and without is not None:
            v, running = guidance(v, without(x, t), running)
        return x - v / steps, running

    return lax.fori_loop(0, steps, step, (noise, jnp.zeros_like(noise)))[0]
