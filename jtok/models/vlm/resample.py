"""Grids of visual tokens that are resampled: a token is a weighted sum of up to four features of the tower.

LLaVA-OneVision (arXiv:2408.03326) shrinks large mosaics of crops and the frames of videos bilinearly, after the
projector. The features that a token is made of are known before tracing (`processing.layout`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok import kernels
from jtok.models.decoder.sequence import Places
from jtok.models.vlm.processing.batch import Batch
from jtok.tokens import Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixture:
    """R tokens of a row, each a sum over K of `weight` times the feature at `source`; F features.

    A grid that is resampled is one segment (each frame of a video is), numbered as its first crop; other grids
    keep one segment per crop, so that a row does not depend on the rest of its batch.
    """

    source: Int[Array, "B R K"]
    weight: Float[Array, "B R K"]
    position: Float[Array, "B R 2"]  # row and column in the segment's grid
    segment: Int[Array, "B R"]
    owner: Int[Array, "B F"]  # the token at each feature's place, -1 = none
    places: Places  # of the R tokens


def mix(tokens: Tokens, mixture: Mixture) -> Tokens:
    """The tokens that a language model reads, from all features in order [B,F,D].

    They count as patches from here on: of size 1, on the grid of their segment. A token with masked sources is the
    mean of the others; if all are masked, it is padding.
    """
    mask = tokens.mask().astype(jnp.float32)
    taps = [(mixture.source[..., i], mixture.weight[..., i]) for i in range(mixture.source.shape[-1])]
    share = [w * jnp.take_along_axis(mask, at, 1) for at, w in taps]
    total = sum(share)

    def mixed(a: Array) -> Array:
        def scaled(at, w):
            return kernels.gather(a, at).astype(jnp.float32) * w.reshape(*w.shape, *[1] * (a.ndim - 2))

        summed = sum(scaled(at, w) for (at, _), w in zip(taps, share, strict=True))
        return (summed / jnp.maximum(total, 1e-6).reshape(*total.shape, *[1] * (a.ndim - 2))).astype(a.dtype)

    valid = total > 1e-6
    return tokens.replace(
        x=mixed(tokens.x),
        size=valid.astype(jnp.float32),
        owner=mixture.owner,
        position=jnp.asarray(mixture.position),
        segment=jnp.asarray(mixture.segment),
        valid=valid,
        policy=None if tokens.policy is None else mixed(tokens.policy),
        carry=jax.tree.map(mixed, dict(tokens.carry)),
    )


def mixture(
    batch: Batch, patches: tuple[int, int], position: Int[np.ndarray, "B L P"], before: Int[np.ndarray, "B L"]
) -> Mixture:
    """The mixture of a batch whose crops have `patches` = (rows, columns) features.

    position, before: RoPE position of every slot of the prompts, and tokens of text up to it.
    """
    rows, crops = batch.ids.shape[0], batch.pixels.shape[1]
    b, n = np.nonzero(batch.tokens & ~batch.newline & (batch.visual >= 0))
    segment, row, column = _grid_places(batch, patches, b, n)
    order = np.lexsort((column, row, segment, b))
    b, n, segment, row, column = (a[order] for a in (b, n, segment, row, column))
    r = np.arange(len(b)) - np.searchsorted(b, b)
    most = int(np.bincount(b, minlength=rows).max())

    def table(values: np.ndarray, shape: tuple[int, ...] = ()) -> np.ndarray:
        full = np.zeros((rows, most, *shape), values.dtype)
        full[b, r] = values
        return full

    slot = batch.visual[b, n]
    token = np.full(batch.tokens.shape, -1, np.int32)
    token[b, n] = r
    home = np.where(batch.home < 0, -1, np.take_along_axis(token, np.maximum(batch.home, 0), 1))
    home = np.pad(home, ((0, 0), (0, crops * patches[0] * patches[1] - home.shape[1])), constant_values=-1)
    start, width = _rectangles((rows, crops), b, r, segment, row, column)
    inside = table(np.ones(len(b), bool))
    taps = batch.source.shape[-1]
    return Mixture(
        source=table(np.maximum(batch.source[b, n], 0), (taps,)),
        weight=table(batch.weight[b, n], (taps,)),
        position=table(np.stack([row, column], -1).astype(np.float32), (2,)),
        segment=table(segment.astype(np.int32)),
        owner=home.astype(np.int32),
        places=Places(table(position[b, slot], position.shape[2:]), table(before[b, slot]), inside, start, width),
    )


def _grid_places(batch: Batch, patches: tuple[int, int], b: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, ...]:
    """(segment, row, column) of the tokens (b, n)."""
    each = patches[0] * patches[1]
    feature, span, resampled = batch.source[b, n, 0], batch.span[b, n], batch.resampled[b, n]
    time, row, column = batch.position[b, n].astype(np.int64).T
    first = np.full((batch.ids.shape[0], int(span.max(initial=0)) + 1), np.iinfo(np.int32).max)
    np.minimum.at(first, (b, span), batch.crop[b, n])
    crop, inner = feature // each, feature % each
    return (
        np.where(resampled, first[b, span] + time, crop),
        np.where(resampled, row, inner // patches[1]),
        np.where(resampled, column, inner % patches[1]),
    )


def _rectangles(shape: tuple[int, int], b, r, segment, row, column) -> tuple[np.ndarray, np.ndarray]:
    """(start, width) of every segment: its tokens, sorted, fill a rectangle; start is where (0, 0) would be."""
    far = np.iinfo(np.int32).max
    first, top, left = (np.full(shape, far) for _ in range(3))
    right = np.full(shape, -1)
    for table, values in ((first, r), (top, row), (left, column)):
        np.minimum.at(table, (b, segment), values)
    np.maximum.at(right, (b, segment), column)
    filled = right >= 0
    width = np.where(filled, right - left + 1, 1)
    start = np.where(filled, first - top * width - left, 0)
    return start.astype(np.int32), width.astype(np.int32)
