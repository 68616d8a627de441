"""Residual quantization over scales: coarse maps of codes first, each the residual of those before, upsampled.

"Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction" (VAR), arXiv:2404.02905, NeurIPS
2024. Maps are channels-last here, [B,H,W,C].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.tokenizers.quantizers.bottleneck import Quantized, straight_through
from jtok.tokenizers.quantizers.vq import lookup


@cache
def area_weights(size: int, out: int) -> np.ndarray:
    """[out, size]: adaptive average pooling along one axis; cells overlap where `out` does not divide `size`."""
    weights = np.zeros((out, size), np.float32)
    for i in range(out):
        start, stop = i * size // out, -(-(i + 1) * size // out)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


@cache
def bicubic_weights(size: int, out: int, a: float = -0.75) -> np.ndarray:
    """[out, size]: cubic convolution along one axis, half-pixel centres, edges repeated, no antialiasing."""

    def kernel(t):
        t = abs(t)
        inner, outer = ((a + 2) * t - (a + 3)) * t * t + 1, a * (((t - 5) * t + 8) * t - 4)
        return inner if t <= 1 else (outer if t < 2 else 0.0)

    weights = np.zeros((out, size), np.float64)
    for i in range(out):
        centre = (i + 0.5) * size / out - 0.5
        first = int(np.floor(centre)) - 1
        for j in range(first, first + 4):
            weights[i, min(max(j, 0), size - 1)] += kernel(centre - j)
    return weights.astype(np.float32)


def _resized(x: Float[Array, "b h w c"], rows: np.ndarray, columns: np.ndarray) -> Float[Array, "b h w c"]:
    x = jnp.einsum("oh,bhwc->bowc", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("pw,bowc->bopc", columns, x, precision=lax.Precision.HIGHEST)


class MultiScaleVQ(nnx.Module):
    """One codebook for all scales; a 3 x 3 convolution smooths each upsampled map.

    sides: side lengths of the maps, ascending, the last that of the input. convolutions: how many scales share
    (0: none is applied). residual: share r of the convolution in (1 - r) h + r conv(h). cosine: nearest by angle (the
    codes are used as they are).
    """

    def __init__(
        self,
        size: int,
        width: int,
        sides: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        *,
        convolutions: int = 4,
        residual: float = 0.5,
        cosine: bool = False,
        beta: float = 0.25,
        rngs: nnx.Rngs,
    ):
        if list(sides) != sorted(sides) or not sides:
            raise UserError(f"the sides of a multi-scale quantizer must ascend; they are {tuple(sides)}.")
        self.size, self.sides, self.residual, self.cosine, self.beta = size, tuple(sides), residual, cosine, beta
        self.codebook = nnx.Param(jax.random.uniform(rngs.params(), (size, width), minval=-1 / size, maxval=1 / size))
        conv = dict(kernel_size=(3, 3), padding=1, precision=lax.Precision.HIGHEST, rngs=rngs)
        self.smooth = nnx.List([nnx.Conv(width, width, **conv) for _ in range(convolutions)])

    def smoother(self, scale: int) -> int:
        """Index of the convolution of a scale (from 0): the nearest of evenly spaced ticks, ties to the first."""
        q, s = len(self.smooth), len(self.sides)
        edge = 1 / (3 * q) if q == 4 else 1 / (2 * q)
        ticks = np.linspace(edge, 1 - edge, q)
        return int(np.argmin(np.abs(ticks - (scale / (s - 1) if s > 1 else 0.0))))

    def grow(self, codes: Float[Array, "b p p c"], scale: int) -> Float[Array, "b h w c"]:
        """The codes of a scale as they are added to the sum: upsampled and smoothed."""
        side = self.sides[-1]
        weights = bicubic_weights(codes.shape[1], side)
        h = codes if codes.shape[1] == side else _resized(codes, weights, weights)
        if not len(self.smooth):
            return h
        return (1 - self.residual) * h + self.residual * self.smooth[self.smoother(scale)](h)

    def shrink(self, x: Float[Array, "b h w c"], scale: int) -> Float[Array, "b p p c"]:
        """Area average of a whole map at a scale."""
        weights = area_weights(x.shape[1], self.sides[scale])
        return x if self.sides[scale] == x.shape[1] else _resized(x, weights, weights)

    def encode(self, z: Float[Array, "b h w c"]) -> tuple[list[Int[Array, "b p p"]], list[Float[Array, "b h w c"]]]:
        """(indices of every scale, the sum so far after every scale)."""
        if z.shape[1:3] != (self.sides[-1],) * 2:
            raise UserError(f"a multi-scale quantizer of sides {self.sides} takes maps of {self.sides[-1]} a side.")
        rest, total, indices, sums = lax.stop_gradient(z.astype(jnp.float32)), 0.0, [], []
        for scale in range(len(self.sides)):
            index = lookup(self.shrink(rest, scale), self.codebook[...], self.cosine)
            h = self.grow(self.codebook[...][index], scale)
            total, rest = total + h, rest - lax.stop_gradient(h)
            indices.append(index)
            sums.append(total)
        return indices, sums

    def __call__(self, z: Float[Array, "b h w c"], *, train: bool = False) -> Quantized:
        """z [B,H,H,C] -> values, indices [B, sum of sides^2], small scales first, row by row; loss `total`."""
        z = z.astype(jnp.float32)
        indices, sums = self.encode(z)
        stop = lax.stop_gradient
        losses = {}
        if train:
            commitment = sum(jnp.square(stop(s) - z).mean() for s in sums) / len(sums)
            codebook = sum(jnp.square(s - stop(z)).mean() for s in sums) / len(sums)
            losses = {"commitment": commitment, "codebook": codebook, "total": self.beta * commitment + codebook}
        flat = jnp.concatenate([i.reshape(i.shape[0], -1) for i in indices], 1)
        return Quantized(straight_through(z, sums[-1]), flat, losses)

    def maps(self, indices: Int[Array, "b l"]) -> list[Float[Array, "b p p c"]]:
        """The codes of every scale that `indices` holds: all, or the first ones."""
        maps, start = [], 0
        for side in self.sides:
            if start >= indices.shape[1]:
                break
            part = indices[:, start : start + side * side]
            maps.append(self.codebook[...][part].reshape(-1, side, side, self.codebook.shape[1]))
            start += side * side
        return maps

    def decode(self, indices: Int[Array, "b l"]) -> Float[Array, "b h w c"]:
        """The map of all scales (or of the first ones, if only those are given)."""
        return sum(self.grow(codes, scale) for scale, codes in enumerate(self.maps(indices)))

    def teacher_inputs(self, indices: Int[Array, "b l"]) -> Float[Array, "b l2 c"]:
        """What a next-scale predictor reads in training: for every scale but the first, the sum so far shrunk to it."""
        total, rows = 0.0, []
        for scale, codes in enumerate(self.maps(indices)[:-1]):
            total, x = self.next_input(total, codes, scale)
            rows.append(x.reshape(x.shape[0], -1, x.shape[-1]))
        return jnp.concatenate(rows, 1)

    def next_input(
        self, total: Float[Array, "b h w c"] | float, codes: Float[Array, "b p p c"], scale: int
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b q q c"]]:
        """One step of generation: (the sum with this scale's codes added, that sum shrunk to the next scale; at the
        last scale the sum itself)."""
        total = total + self.grow(codes, scale)
        last = scale == len(self.sides) - 1
        return total, total if last else self.shrink(total, scale + 1)
