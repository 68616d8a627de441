"""Convolutional encoders and decoders of images: VQGAN's, latent diffusion's and MaskGIT's, which differ in details.

"Taming Transformers for High-Resolution Image Synthesis" (VQGAN), arXiv:2012.09841; "High-Resolution Image Synthesis
with Latent Diffusion Models", arXiv:2112.10752; "MaskGIT: Masked Generative Image Transformer", arXiv:2202.04200.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class ConvShape:
    """channels: of the code grid. width: after the first convolution. widths: channels of every level, each at half
    the resolution of the one before. blocks: residual blocks per level of the encoder. middle: those at the lowest
    resolution. attention, decoder_attention: levels whose blocks are each followed by attention. groups: of every
    normalisation.

    ldm (VQGAN, latent diffusion, diffusers): strided convolutions, attention in the middle, one more block per level
    in the decoder. maskgit: 2 x 2 mean pooling, no attention, no biases in blocks, and a shortcut that reads the
    block's output where the number of channels changes.
    """

    channels: int
    width: int = 128
    widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2
    middle: int = 2
    attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] = ()
    groups: int = 32
    style: Literal["ldm", "maskgit"] = "ldm"

    @property
    def stride(self) -> int:
        """Pixels a side for one place of the grid."""
        return 2 ** (len(self.widths) - 1)


def _conv(a: int, b: int, rngs: nnx.Rngs, size: int = 3, bias: bool = True, **options) -> nnx.Conv:
    return nnx.Conv(a, b, (size, size), use_bias=bias, rngs=rngs, **{"padding": "SAME", **options})


def _norm(width: int, groups: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(width, num_groups=groups, epsilon=1e-6, rngs=rngs)


class ResidualBlock(nnx.Module):
    """Two 3 x 3 convolutions, each after a group norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, s: ConvShape, rngs: nnx.Rngs):
        bias, self.own_output = s.style == "ldm", s.style == "maskgit"
        self.norm1, self.conv1 = _norm(inputs, s.groups, rngs), _conv(inputs, outputs, rngs, bias=bias)
        self.norm2, self.conv2 = _norm(outputs, s.groups, rngs), _conv(outputs, outputs, rngs, bias=bias)
        read = outputs if self.own_output else inputs
        self.shortcut = _conv(read, outputs, rngs, 1, bias=bias) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        if self.shortcut is None:
            return h + x
        return h + self.shortcut(h if self.own_output else x)


class AttentionBlock(nnx.Module):
    """Single-head attention over all places of the grid, after a group norm, with a residual."""

    def __init__(self, width: int, s: ConvShape, rngs: nnx.Rngs):
        self.norm = _norm(width, s.groups, rngs)
        self.q, self.k, self.v, self.out = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        b, h, w, c = x.shape
        y = self.norm(x).reshape(b, h * w, 1, c)
        y = jax.nn.dot_product_attention(self.q(y), self.k(y), self.v(y))
        return x + self.out(y.reshape(b, h, w, c))


class Middle(nnx.Module):
    """Residual blocks at the lowest resolution, with attention after the first one (ldm)."""

    def __init__(self, s: ConvShape, rngs: nnx.Rngs):
        width = s.widths[-1]
        self.blocks = nnx.List([ResidualBlock(width, width, s, rngs) for _ in range(s.middle)])
        self.attention = None if s.style == "maskgit" else AttentionBlock(width, s, rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 0 and self.attention is not None:
                x = self.attention(x)
        return x


class Level(nnx.Module):
    """Residual blocks at one resolution, each followed by attention if `attend`."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attend: bool, s: ConvShape, rngs: nnx.Rngs):
        made = [ResidualBlock(outputs if i else inputs, outputs, s, rngs) for i in range(blocks)]
        self.blocks = nnx.List(made)
        self.attention = nnx.List([AttentionBlock(outputs, s, rngs) for _ in range(blocks * attend)])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        for i, block in enumerate(self.blocks):
            x = block(x)
            x = self.attention[i](x) if len(self.attention) else x
        return x


class ConvEncoder(nnx.Module):
    """Images to `outputs` channels at 1 / stride of their sides."""

    def __init__(self, s: ConvShape, outputs: int, rngs: nnx.Rngs):
        ldm = s.style == "ldm"
        self.conv_in = _conv(3, s.width, rngs, bias=ldm)
        inputs = (s.width, *s.widths)
        self.down = nnx.List([Level(inputs[i], w, s.blocks, i in s.attention, s, rngs) for i, w in enumerate(s.widths)])
        strided = {"strides": 2, "padding": [(0, 1), (0, 1)]}  # as released: padded below and to the right only
        self.shrink = nnx.List([_conv(w, w, rngs, **strided) for w in s.widths[:-1]] if ldm else [])
        self.mid = Middle(s, rngs)
        self.norm_out = _norm(s.widths[-1], s.groups, rngs)
        self.conv_out = _conv(s.widths[-1], outputs, rngs, 3 if ldm else 1)

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x)
            if i < len(self.down) - 1:
                x = self.shrink[i](x) if len(self.shrink) else _halved(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class ConvDecoder(nnx.Module):
    """A grid of `inputs` channels to images."""

    def __init__(self, s: ConvShape, inputs: int, rngs: nnx.Rngs):
        blocks = s.blocks + (s.style == "ldm")
        self.conv_in = _conv(inputs, s.widths[-1], rngs)
        self.mid = Middle(s, rngs)
        before = (*s.widths[1:], s.widths[-1])  # channels that come up to each level
        self.up = nnx.List(
            [Level(before[i], w, blocks, i in s.decoder_attention, s, rngs) for i, w in enumerate(s.widths)]
        )
        self.grow = nnx.List([_conv(w, w, rngs) for w in s.widths[1:]])
        self.norm_out, self.conv_out = _norm(s.widths[0], s.groups, rngs), _conv(s.widths[0], 3, rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        x = self.mid(self.conv_in(x))
        for i in reversed(range(len(self.up))):
            x = self.up[i](x)
            if i:
                x = self.grow[i - 1](jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


def _halved(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
