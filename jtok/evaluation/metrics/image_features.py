"""Features of images without any weights, for a Fréchet distance where FID's network is unavailable: it is not FID."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

#: What a Fréchet distance of these features is reported as. Its numbers compare with each other, and with no FID.
RANDOM_CONV = "frechet_random_conv"
WIDTHS = (8, 16, 24)


def random_convolutions(images: Float[Array, "B H W 3"]) -> Float[Array, "B 48"]:
    """Mean activations of three layers of fixed random 3 x 3 filters, each at half the resolution of the one before.

    Filters sum to zero over their window and have norm one, so that they see differences of neighbours, not colours;
    rectified. Images in [0,1], at least 8 pixels a side.
    """
    draw, x, found = np.random.default_rng(0), images.astype(jnp.float32), []
    for width in WIDTHS:
        kernel = draw.standard_normal((3, 3, x.shape[-1], width))
        kernel -= kernel.mean((0, 1), keepdims=True)
        kernel /= np.sqrt(np.square(kernel).sum((0, 1, 2), keepdims=True))
        layout = ("NHWC", "HWIO", "NHWC")
        kernel = jnp.asarray(kernel, jnp.float32)
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout))
        found.append(x.mean((1, 2)))
    return jnp.concatenate(found, -1)


def in_batches(
    features: Callable[[Array], Array], images: Float[np.ndarray, "N H W 3"], batch: int = 32
) -> Float[np.ndarray, "N D"]:
    """Features of many images, in batches of one size: the last is filled up with its last image.

    features: a pytree that is called, so that its weights are not constants of the program.
    """
    run, n = jax.jit(lambda f, x: f(x)), len(images)
    rows = np.minimum(np.arange(-(-n // batch) * batch), n - 1).reshape(-1, batch)
    return np.concatenate([np.asarray(run(features, images[r])) for r in rows])[:n]
