"""A tokenizer of small square images as a codec for images of any size: tiles, each with the tokens it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from jtok.errors import UserError
from jtok.tokenizers.container import Container
from jtok.tokenizers.files import fingerprint
from jtok.tokenizers.protocol import ImageTokenizer
from jtok.tokenizers.tiling import Tiling

Image8 = UInt8[np.ndarray, "H W 3"]
QUALITIES = (1.0, 60.0)  # dB of PSNR that can be requested


@dataclasses.dataclass(frozen=True)
class Analysis:
    """An image's tiles as all their ids [T,K]; errors: mean squared error in [0,1] at each of L `lengths` [T,L]."""

    tiling: Tiling
    ids: Int[np.ndarray, "T K"]
    errors: Float[np.ndarray, "T L"]
    lengths: tuple[int, ...]

    def at_quality(self, quality: float) -> Int[np.ndarray, " T"]:
        """The fewest tokens with which each tile has this PSNR in dB; all of them where it is out of reach."""
        return fewest(self.errors, self.lengths, quality)

    def missed(self, quality: float) -> Bool[np.ndarray, " T"]:
        """Tiles that do not have this PSNR at any length."""
        return ~_reached(self.errors, quality).any(1)


class Codec:
    """Images uint8 [H,W,3] to containers and back.

    overlap: pixels that neighbouring tiles share. batch: tiles at once; there is one compiled program for each
    direction, whatever the image's size. Raises UserError for a tokenizer that has no ids or needs more than an image.
    """

    def __init__(self, tokenizer: ImageTokenizer, *, overlap: int = 4, batch: int = 32):
        self.bits = (code_size(tokenizer) - 1).bit_length()
        self.codes, self.lengths, self.tile = code_size(tokenizer), tokenizer.lengths, tokenizer.image_side
        self.fingerprint, self.overlap, self.batch = fingerprint(tokenizer), overlap, batch
        graph, self._state = nnx.split(tokenizer)
        lengths = jnp.asarray(self.lengths, jnp.int32)

        @jax.jit
        def analyse(state, tiles):
            return nnx.merge(graph, state).analyse(tiles).ids

        @jax.jit
        def measure(state, tiles, ids, weights):
            net = nnx.merge(graph, state)
            code = net.from_ids(ids, jnp.full(ids.shape[0], ids.shape[1], jnp.int32))
            weights = weights / weights.sum((1, 2), keepdims=True)

            def error(length):
                reconstruction = jnp.round(net.decode(code.take(length)) * 255) / 255
                return (jnp.square(reconstruction - tiles).mean(-1) * weights).sum((1, 2))

            return jax.lax.map(error, lengths).T

        @jax.jit
        def decode(state, ids, counts):
            net = nnx.merge(graph, state)
            return net.decode(net.from_ids(ids, counts))

        self._analyse, self._measure, self._decode = analyse, measure, decode

    def tiling(self, height: int, width: int) -> Tiling:
        """The tiling of an image of this size."""
        return Tiling(height, width, self.tile, self.overlap)

    def encode(self, image: Image8, *, tokens: int | None = None, quality: float | None = None) -> Container:
        """An image with `tokens` per tile, or with the fewest that give each tile `quality` (dB), or all where none do.

        Raises UserError for a length or a quality out of range, and unless exactly one of the two is given.
        """
        if (tokens is None) == (quality is None):
            raise UserError("give either a number of tokens or a quality.")
        if tokens is not None:
            self.check_tokens(tokens)
            tiling = self.tiling(*image.shape[:2])
            ids = self.ids(_unit(tiling.cut(image)))
            return self.container(tiling, ids, np.full(tiling.count, tokens, np.int32))
        check_quality(quality)
        analysis = self.analyse(image)
        return self.container(analysis.tiling, analysis.ids, analysis.at_quality(quality))

    def analyse(self, image: Image8) -> Analysis:
        """The ids of all tiles and their errors at every length, from which tokens for any quality can be chosen."""
        tiling = self.tiling(*image.shape[:2])
        tiles = _unit(tiling.cut(image))
        ids = self.ids(tiles)
        return Analysis(tiling, ids, self.errors(tiles, ids, tiling.weights()), self.lengths)

    def container(self, tiling: Tiling, ids: Int[np.ndarray, "T K"], counts: Int[np.ndarray, " T"]) -> Container:
        """The first `counts` ids of each tile."""
        kept = ids[np.arange(ids.shape[1]) < counts[:, None]]
        return Container(tiling, self.fingerprint, self.bits, np.asarray(counts, np.int32), kept)

    def decode(self, c: Container, *, tokens: int | None = None, name: str = "the container") -> Image8:
        """The image, decoded from all tokens or from the first `tokens` of each tile.

        Raises UserError for another tokenizer's container, and for one with tiles or ids that this one does not have.
        """
        c.check_tokenizer(self.fingerprint, name)
        longest = self.lengths[-1]
        odd = c.tiling.tile != self.tile or c.bits != self.bits or c.counts.max() > longest
        if odd or c.ids.max() >= self.codes:
            raise UserError(f"'{name}' is corrupt: it has tiles or ids that its tokenizer does not make.")
        counts = c.counts
        if tokens is not None:
            self.check_tokens(tokens)
            counts = np.minimum(counts, tokens)
        tiles = self._in_batches(self._decode, c.padded(longest), counts)
        return np.round(c.tiling.join(np.round(tiles * 255))).astype(np.uint8)

    def errors(
        self, tiles: Float[np.ndarray, "T t t 3"], ids: Int[np.ndarray, "T K"], weights: Float[np.ndarray, "T t t"]
    ) -> Float[np.ndarray, "T L"]:
        """Mean squared error of each tile in [0,1], with weights of its pixels, after 8 bits, at every length."""
        return self._in_batches(self._measure, tiles, ids, weights.astype(np.float32))

    def check_tokens(self, tokens: int) -> None:
        """Raises UserError for a number of tokens that no tile can have."""
        if not self.lengths[0] <= tokens <= self.lengths[-1]:
            raise UserError(f"{tokens} tokens a tile are requested; this tokenizer has {_span(self.lengths)}.")

    def ids(self, tiles: Float[np.ndarray, "T t t 3"]) -> Int[np.ndarray, "T K"]:
        """All ids of tiles in [0,1]."""
        return self._in_batches(self._analyse, tiles)

    def _in_batches(self, run: Callable, *arrays: np.ndarray) -> np.ndarray:
        """Rows in batches of one size, the last filled up with the last row."""
        n = len(arrays[0])
        rows = np.minimum(np.arange(-(-n // self.batch) * self.batch), n - 1).reshape(-1, self.batch)
        return np.concatenate([np.asarray(run(self._state, *(a[r] for a in arrays))) for r in rows])[:n]


def fewest(errors: Float[np.ndarray, "T L"], lengths: tuple[int, ...], quality: float) -> Int[np.ndarray, " T"]:
    """The first of `lengths` at which the error is that of `quality` (dB) or less; the last where it never is."""
    reached = _reached(errors, quality)
    first = np.where(reached.any(1), reached.argmax(1), len(lengths) - 1)
    return np.asarray(lengths, np.int32)[first]


def code_size(tokenizer: ImageTokenizer) -> int:
    """Number of ids that a tokenizer has. Raises UserError for one that cannot code images as ids by itself."""
    if not tokenizer.codec_ready:
        raise UserError(
            "images are coded by a TiTok with an FSQ or VQ bottleneck and without text; this is another, which jtok "
            "show and jtok evaluate accept."
        )
    return tokenizer.codes


def check_quality(quality: float) -> None:
    """Raises UserError for a PSNR out of range."""
    low, high = QUALITIES
    if not low <= quality <= high:
        raise UserError(f"a quality of {quality:g} dB is out of range: give a PSNR from {low:g} to {high:g} dB.")


def _reached(errors: np.ndarray, quality: float) -> np.ndarray:
    return errors <= 10 ** (-quality / 10)


def _unit(tiles: np.ndarray) -> np.ndarray:
    return tiles.astype(np.float32) / 255


def _span(lengths: tuple[int, ...]) -> str:
    return str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
