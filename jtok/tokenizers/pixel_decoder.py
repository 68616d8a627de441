"""The decoder of MaskGIT's VQGAN: from a grid of code vectors to pixels, f16.

"MaskGIT: Masked Generative Image Transformer", arXiv:2202.04200; the variant of TiTok's release, where a block that
changes the number of channels applies its shortcut to its own output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jtok.tokenizers.released import Name, linear, norm


def _conv(a: int, b: int, rngs: nnx.Rngs, size: int = 3, bias: bool = True) -> nnx.Conv:
    return nnx.Conv(a, b, (size, size), padding="SAME", use_bias=bias, rngs=rngs)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(width, num_groups=32, epsilon=1e-6, rngs=rngs)


class ResidualBlock(nnx.Module):
    """Two 3 x 3 convolutions without bias, each behind a group norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.norm1, self.conv1 = _norm(inputs, rngs), _conv(inputs, outputs, rngs, bias=False)
        self.norm2, self.conv2 = _norm(outputs, rngs), _conv(outputs, outputs, rngs, bias=False)
        self.shortcut = _conv(outputs, outputs, rngs, 1, bias=False) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(h))


class PixelDecoder(nnx.Module):
    """width: channels at full resolution, times `multipliers` at each halving of it."""

    def __init__(
        self,
        inputs: int,
        rngs: nnx.Rngs,
        *,
        width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
    ):
        widths = [width * m for m in multipliers]
        self.conv_in = _conv(inputs, widths[-1], rngs)
        self.mid = nnx.List([ResidualBlock(widths[-1], widths[-1], rngs) for _ in range(blocks)])
        levels, now = [], widths[-1]
        for level in reversed(range(len(widths))):
            stage = nnx.List(
                [ResidualBlock(now if i == 0 else widths[level], widths[level], rngs) for i in range(blocks)]
            )
            levels.append(stage)
            now = widths[level]
        self.up = nnx.List(levels[::-1])
        self.grow = nnx.List([_conv(w, w, rngs) for w in widths[1:]])
        self.norm_out, self.conv_out = _norm(widths[0], rngs), _conv(widths[0], 3, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 3"]:
        """Twice the rows and columns for every multiplier but the first."""
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:
                x = block(x)
            if level:
                x = self.grow[level - 1](jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
        return self.conv_out(jax.nn.silu(self.norm_out(x)))

    def names(self, ours: str, theirs: str) -> Iterator[Name]:
        """The released names of its parameters."""
        yield from linear(f"{ours}.conv_in", f"{theirs}.conv_in", "conv")
        yield from linear(f"{ours}.conv_out", f"{theirs}.conv_out", "conv")
        yield from norm(f"{ours}.norm_out", f"{theirs}.norm_out")
        pairs = [(f"{ours}.mid.{i}", f"{theirs}.mid.{i}") for i in range(len(self.mid))]
        for level, blocks in enumerate(self.up):
            pairs += [(f"{ours}.up.{level}.{i}", f"{theirs}.up.{level}.block.{i}") for i in range(len(blocks))]
            if level:
                yield from linear(f"{ours}.grow.{level - 1}", f"{theirs}.up.{level}.upsample_conv", "conv")
        for a, b in pairs:
            yield from norm(f"{a}.norm1", f"{b}.norm1")
            yield from norm(f"{a}.norm2", f"{b}.norm2")
            yield from linear(f"{a}.conv1", f"{b}.conv1", "conv", bias=False)
            yield from linear(f"{a}.conv2", f"{b}.conv2", "conv", bias=False)
            yield from linear(f"{a}.shortcut", f"{b}.nin_shortcut", "conv", bias=False)
