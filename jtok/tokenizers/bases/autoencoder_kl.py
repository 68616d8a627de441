"""The autoencoder of latent diffusion with Gaussian latents, as diffusers' `AutoencoderKL` and MAR's KL-16 hold it.

"High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752. FlexTok's VAEs are such files (stride
8; 4, 8 or 16 channels). Tokenizers built on it read latents shifted and scaled to about unit variance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jtok.checkpoints.rules import Rule, linear
from jtok.tokenizers.autoencoder import ConvDecoder, ConvEncoder, ConvShape
from jtok.tokenizers.autoencoder_names import decoder_names, encoder_names

#: Default of diffusers where a config.json states no scaling_factor.
DIFFUSERS_SCALE = 0.18215


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """scale, shift: latents are (z - shift) x scale. unscale: whether `decode` undoes that. signed: the network reads
    and writes pixels in [-1,1], else in [0,1]. moments, decoding: 1 x 1 convolutions after the encoder and before the
    decoder. naming: of the file's tensors."""

    shape: ConvShape
    scale: float = 1.0
    shift: float = 0.0
    unscale: bool = True
    signed: bool = True
    moments: bool = True
    decoding: bool = True
    naming: str = "diffusers"


class AutoencoderKL(nnx.Module):
    """Images [B,H,W,3] in [0,1] to scaled latents [B,h,w,C] and back; sides must be multiples of `stride`."""

    def __init__(self, config: KLConfig, rngs: nnx.Rngs):
        c, n = config, config.shape.channels
        self.config = c
        self.encoder = ConvEncoder(c.shape, 2 * n, rngs)
        self.decoder = ConvDecoder(c.shape, n, rngs)
        self.moments = nnx.Linear(2 * n, 2 * n, rngs=rngs) if c.moments else None
        self.decoding = nnx.Linear(n, n, rngs=rngs) if c.decoding else None

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.config.shape.channels

    @property
    def stride(self) -> int:
        """Pixels a side for one latent."""
        return self.config.shape.stride

    @property
    def codes(self) -> int:
        """Size of the codebook: latents are continuous, so 0."""
        return 0

    def posterior(self, images: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
        """(mean, logarithm of the variance) of the latents before shift and scale."""
        x = self.encoder(2 * images - 1 if self.config.signed else images)
        x = x if self.moments is None else self.moments(x)
        mean, variance = jnp.split(x, 2, -1)
        return mean, jnp.clip(variance, -30, 20)

    def encode(self, images: Float[Array, "B H W 3"], key: Array | None = None) -> Float[Array, "B h w C"]:
        """Latents: means, or with `key` a draw of the posterior, as the authors of FlexTok, ALIT and KARL take."""
        z, variance = self.posterior(images)
        if key is not None:
            z = z + jnp.exp(0.5 * variance) * jax.random.normal(key, z.shape)
        return (z - self.config.shift) * self.config.scale

    def decode(self, grid: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Images of latents, not clipped."""
        c = self.config
        z = grid / c.scale + c.shift if c.unscale else grid
        x = self.decoder(z if self.decoding is None else self.decoding(z))
        return (x + 1) / 2 if c.signed else x

    def names(self) -> Iterator[Rule]:
        """The released names of all parameters."""
        yield from encoder_names(self.encoder, "encoder", "encoder", self.config.naming)
        yield from decoder_names(self.decoder, "decoder", "decoder", self.config.naming)
        yield from linear("quant_conv", "moments")
        yield from linear("post_quant_conv", "decoding")


def diffusers_config(shape: ConvShape, tensors: Mapping[str, Any], naming: str, stated: Mapping[str, Any]) -> KLConfig:
    """The config of a file of diffusers, whose config.json (`stated`) has the scale, the shift and the groups."""
    return KLConfig(
        dataclasses.replace(shape, groups=int(stated.get("norm_num_groups") or 32)),
        scale=float(stated.get("scaling_factor") or DIFFUSERS_SCALE),
        shift=float(stated.get("shift_factor") or 0.0),
        moments="quant_conv.weight" in tensors,
        decoding="post_quant_conv.weight" in tensors,
        naming=naming,
    )
