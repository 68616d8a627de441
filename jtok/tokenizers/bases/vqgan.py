"""VQGAN: an autoencoder whose grid is quantized with a learned codebook; stride 16 and 1024 codes in its releases.

"Taming Transformers for High-Resolution Image Synthesis", arXiv:2012.09841. ALIT and KARL read its codes before they
are quantized, and learn to guess their indices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.checkpoints.rules import Rule, linear, table
from jtok.tokenizers.autoencoder import ConvDecoder, ConvEncoder, ConvShape
from jtok.tokenizers.autoencoder_names import decoder_names, encoder_names
from jtok.tokenizers.quantizers.vq import lookup


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """codes, code_width: of the codebook. coding: 1 x 1 convolutions between it and encoder and decoder. signed: the
    network reads and writes pixels in [-1,1], else in [0,1]. naming: of the file's tensors."""

    shape: ConvShape
    codes: int = 1024
    code_width: int = 256
    coding: bool = True
    signed: bool = True
    naming: str = "ldm"


class VQGAN(nnx.Module):
    """Images [B,H,W,3] in [0,1] to a grid of codes and back; sides must be multiples of `stride`."""

    def __init__(self, config: VQGANConfig, rngs: nnx.Rngs):
        c, n = config, config.shape.channels
        self.config = c
        self.encoder, self.decoder = ConvEncoder(c.shape, n, rngs), ConvDecoder(c.shape, n, rngs)
        self.codebook = nnx.Param(jax.random.normal(rngs.params(), (c.codes, c.code_width)))
        self.to_code = nnx.Linear(n, c.code_width, rngs=rngs) if c.coding else None
        self.from_code = nnx.Linear(c.code_width, n, rngs=rngs) if c.coding else None

    @property
    def channels(self) -> int:
        """Channels of a code."""
        return self.config.code_width

    @property
    def stride(self) -> int:
        """Pixels a side for one code."""
        return self.config.shape.stride

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return self.config.codes

    def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w E"]:
        """Continuous codes, before the codebook."""
        x = self.encoder(2 * images - 1 if self.config.signed else images)
        return x if self.to_code is None else self.to_code(x)

    def ids(self, images: Float[Array, "B H W 3"]) -> Int[Array, "B h w"]:
        """Index of the nearest code at every place."""
        return lookup(self.encode(images), self.codebook[...])

    def embed(self, ids: Int[Array, "B h w"]) -> Float[Array, "B h w E"]:
        """The codes of indices."""
        return self.codebook[...][ids]

    def decode(self, grid: Float[Array, "B h w E"]) -> Float[Array, "B H W 3"]:
        """Images of codes, not clipped."""
        x = self.decoder(grid if self.from_code is None else self.from_code(grid))
        return (x + 1) / 2 if self.config.signed else x

    def names(self) -> Iterator[Rule]:
        """The released names of all parameters."""
        yield from encoder_names(self.encoder, "encoder", "encoder", self.config.naming)
        yield from decoder_names(self.decoder, "decoder", "decoder", self.config.naming)
        yield table("quantize.embedding.weight", "codebook")
        yield from linear("quant_conv", "to_code")
        yield from linear("post_quant_conv", "from_code")


def taming_config(shape: ConvShape, tensors: Mapping[str, tuple[int, ...]], naming: str) -> VQGANConfig:
    """The config of a file of taming-transformers."""
    codes, width = tensors["quantize.embedding.weight"]
    return VQGANConfig(shape, codes, width, coding="quant_conv.weight" in tensors, naming=naming)
