"""Masked generation of code sequences: predict all, keep the most confident, remask the others.

"MaskGIT: Masked Generative Image Transformer", arXiv:2202.04200, with the guidance schedules of TiTok (arXiv:
2406.07550) and MaskGen (arXiv:2501.07730).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

#: (ids [B,K] with masked ones, condition [B] or None for the dropped label) -> logits [B,K,V]
Network = Callable[[Int[Array, "B K"], Int[Array, " B"] | None], Float[Array, "B K V"]]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """steps; temperature of the noise at the start; guidance: scale, its decay and power; anneal: softer logits first.

    Released: L-32 8 steps, 9.5, 4.5; B-64 8, 11, 3; S-128 64, 2.8, 6.9; all `linear` with annealing.
    """

    steps: int = 8
    temperature: float = 9.5
    guidance: float = 4.5
    decay: Literal["constant", "linear", "power-cosine"] = "linear"
    power: float = 3.0
    anneal: bool = True

    def guided(self, network: Network, ids: Array, condition: Array, step: int) -> Float[Array, "B K V"]:
        """Logits with guidance. `linear` has none in the first step and then the scale of the step before."""
        with_label = network(ids, condition)
        if self.decay == "linear" and step == 0 or self.guidance == 0:
            return with_label
        without = network(ids, None)
        if self.decay == "power-cosine":
            scale = (self.guidance - 1) * (1 - np.cos(np.pi * (step / self.steps) ** self.power)) / 2 + 1
            return without + (with_label - without) * scale
        scale = self.guidance * (step / self.steps if self.decay == "linear" else 1.0)
        return with_label + (with_label - without) * scale


def gumbel(u: Float[Array, "..."]) -> Float[Array, "..."]:
    """Gumbel noise of uniform numbers."""
    return -jnp.log(jnp.maximum(-jnp.log(jnp.maximum(u, 1e-20)), 1e-20))


def sample(
    network: Network,
    condition: Int[Array, " B"],
    length: int,
    size: int,
    schedule: Schedule,
    key: Array | None = None,
    *,
    uniforms: tuple[Float[Array, "S B K V"], Float[Array, "S B K"]] | None = None,
    as_released: bool = False,
) -> tuple[Int[Array, "B K"], list[Int[Array, "B K"]]]:
    """(ids [B,K] in [0, size), what the network read at each step; masked = size).

    uniforms: the random numbers of all steps, for ids and for confidences, in place of `key`. as_released: the
    number of remasked tokens is bounded, for all images, by the number masked in the batch's first image.
    """
    b = condition.shape[0]
    ids, read = jnp.full((b, length), size, jnp.int32), []
    for step in range(schedule.steps):
        read.append(ids)
        if uniforms is None:
            key, one, two = jax.random.split(key, 3)
            u, v = jax.random.uniform(one, (b, length, size)), jax.random.uniform(two, (b, length))
        else:
            u, v = (x[step] for x in uniforms)
        ids = _step(network, condition, ids, size, schedule, step, (u, v), as_released)
    return ids, read


def _step(network, condition, ids, size, schedule: Schedule, step: int, uniforms, as_released: bool):
    ratio = (step + 1) / schedule.steps
    noise = schedule.temperature * (1 - ratio)
    logits = schedule.guided(network, ids, condition, step)
    logits = logits / (0.5 + 0.8 * (1 - ratio)) if schedule.anneal else logits
    masked = ids == size
    drawn = jnp.argmax(logits + noise * gumbel(uniforms[0]), -1).astype(jnp.int32)
    score = jnp.where(masked, jnp.take_along_axis(logits, drawn[..., None], -1)[..., 0], jnp.inf)
    drawn = jnp.where(masked, drawn, ids)
    if step == schedule.steps - 1:
        return drawn
    wanted = int(np.floor(ids.shape[1] * np.arccos(ratio) / (np.pi / 2)))
    now = masked.sum(1)
    now = jnp.broadcast_to(now[0], now.shape) if as_released else now
    count = jnp.maximum(jnp.minimum(wanted, now - 1), 1)
    confidence = score + noise * gumbel(uniforms[1])
    cut = jnp.take_along_axis(jnp.sort(confidence, 1), count[:, None] - 1, 1)
    return jnp.where(confidence <= cut, size, drawn)


def masked_training_batch(
    ids: Int[Array, "B K"], size: int, key: Array
) -> tuple[Int[Array, "B K"], Float[Array, "B K"]]:
    """(ids with a random share masked, weight of each in the loss: 1 masked, 0.1 not); the share is arccos(u) / (pi/2)
    of the sequence, at least one."""
    draw, order = jax.random.split(key)
    b, k = ids.shape
    share = jnp.arccos(jax.random.uniform(draw, (b,))) / (jnp.pi / 2)
    count = jnp.maximum(jnp.round(k * share), 1)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(order, (b, k)), 1), 1)
    masked = rank < count[:, None]
    return jnp.where(masked, size, ids), jnp.where(masked, 1.0, 0.1)


def masked_loss(
    logits: Float[Array, "B K V"], ids: Int[Array, "B K"], weight: Float[Array, "B K"], smoothing: float = 0.1
) -> Float[Array, ""]:
    """Label-smoothed cross-entropy of all tokens, weighted."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    right = jnp.take_along_axis(log_p, ids[..., None], -1)[..., 0]
    each = -(1 - smoothing) * right - smoothing * log_p.mean(-1)
    return (each * weight).sum() / lax.stop_gradient(weight.sum())
