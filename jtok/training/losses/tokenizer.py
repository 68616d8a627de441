"""Losses of reconstructions: pixels, structure, an adversary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Images = Float[Array, "B H W 3"]


def pixel_loss(a: Images, b: Images, power: int = 2) -> Float[Array, " B"]:
    """Mean squared (power 2) or absolute (power 1) difference of every image."""
    difference = a - b
    return (jnp.square(difference) if power == 2 else jnp.abs(difference)).mean((1, 2, 3))


def pyramid_loss(a: Images, b: Images, levels: int = 3) -> Float[Array, " B"]:
    """A substitute for a perceptual loss that needs no weights: absolute differences of image gradients, at `levels`
    scales that are each half the one before, summed. It rewards edges in their places; it is not LPIPS and is never
    reported as such."""
    total = 0.0
    for level in range(levels):
        if level:
            a, b = averaged(a, 2), averaged(b, 2)
        if min(a.shape[1:3]) < 2:
            break
        for axis in (1, 2):
            total += jnp.abs(jnp.diff(a, axis=axis) - jnp.diff(b, axis=axis)).mean((1, 2, 3))
    return total


def averaged(x: Images, side: int) -> Float[Array, "B h w 3"]:
    """Means over squares of `side` pixels; what is left over at the border is not looked at."""
    b, h, w, c = x.shape
    h, w = h // side, w // side
    return x[:, : h * side, : w * side].reshape(b, h, side, w, side, c).mean((2, 4))


class PatchDiscriminator(nnx.Module):
    """Convolutions that judge overlapping patches, [B,h,w] logits; pix2pix, arXiv:1611.07004."""

    def __init__(self, rngs: nnx.Rngs, width: int = 64, layers: int = 3):
        widths = [3] + [width * min(2**i, 8) for i in range(layers)]
        pairs = zip(widths, widths[1:], strict=False)
        self.convs = nnx.List([nnx.Conv(a, b, (4, 4), strides=2, padding="SAME", rngs=rngs) for a, b in pairs])
        self.norms = nnx.List([nnx.GroupNorm(b, num_groups=min(32, b), rngs=rngs) for b in widths[2:]])
        self.out = nnx.Conv(widths[-1], 1, (4, 4), padding="SAME", rngs=rngs)

    def __call__(self, images: Images) -> Float[Array, "B h w"]:
        x = images
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = jax.nn.leaky_relu(self.norms[i - 1](x) if i else x, 0.2)
        return self.out(x)[..., 0]


def hinge_losses(real: Float[Array, "B h w"], fake: Float[Array, "B h w"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(the discriminator's loss, the generator's), hinge form, arXiv:1705.02894."""
    judge = jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()
    return 0.5 * judge, -fake.mean()


def lecam(
    real: Float[Array, "B h w"], fake: Float[Array, "B h w"], real_mean: Float[Array, ""], fake_mean: Float[Array, ""]
) -> Float[Array, ""]:
    """LeCam regularisation of a discriminator by moving averages of its judgements, arXiv:2104.03310."""
    return jnp.square(jax.nn.relu(real - fake_mean)).mean() + jnp.square(jax.nn.relu(real_mean - fake)).mean()


def gradient_penalty(discriminator: PatchDiscriminator, images: Images) -> Float[Array, ""]:
    """R1: the squared gradient of the judgement of real images, arXiv:1801.04406; mean over images."""
    gradient = jax.grad(lambda x: discriminator(x).mean((1, 2)).sum())(images)
    return jnp.square(gradient).sum((1, 2, 3)).mean()
