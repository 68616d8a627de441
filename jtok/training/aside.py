"""Auxiliary losses: parts of the parameters that follow a rule of their own, in the same step.

What the training loop minimises is one scalar. A term that shall move only some of the parameters (a discriminator)
stops its gradient at all others; added by `aside` it leaves the value of the loss as it is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

stop = jax.lax.stop_gradient


def aside(loss: Float[Array, ""]) -> Float[Array, ""]:
    """Zero with the gradient of `loss`; not a number where `loss` is none."""
    return loss - stop(loss)


def assign(old: Float[Array, "..."], new: Float[Array, "..."]) -> Float[Array, ""]:
    """Zero, with the gradient old - new in `old`: descent at rate one, which `train.parts.<name>.assign` asks for,
    makes it `new`. So moving averages and other state live among the parameters, saved and resumed like these; of what
    micro-batches assign, the mean is taken."""
    return aside(0.5 * jnp.square(old - stop(new)).sum())
