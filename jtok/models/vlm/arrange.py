"""Turns a batch of prompts, ids with placeholders for visual tokens, into the arrays a vision-language model takes.

Text and visual tokens are separated: text in order, and for every feature of the tower its place in the prompt. So a
program's shapes depend on the length of the text and the number of visual tokens, and on nothing else.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jtok.models.decoder.sequence import Places
from jtok.models.vlm.any_size import on_one_grid
from jtok.models.vlm.processing.batch import Batch
from jtok.models.vlm.resample import Mixture, mixture


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """B prompts with M tokens of text, X crops a row and F features of them; T tokens of text follow the last image."""

    pixels: Float[np.ndarray, "B X ..."] | None  # [H,W,C], or patches on a grid: see `any_size`
    ids: Int[np.ndarray, "B M"]
    position: Int[np.ndarray, "B M P"]
    valid: Bool[np.ndarray, "B M"]
    newline: Bool[np.ndarray, "B M"]  # slots of the learned vector that ends a row of crops
    question: Int[np.ndarray, "B T"]  # indices into the M tokens
    question_valid: Bool[np.ndarray, "B T"]
    places: Places
    mixture: Mixture | None = None  # of features, where a grid is resampled
    visible: int = dataclasses.field(default=0, metadata={"static": True})  # most features of a row in its prompt
    sizes: Int[np.ndarray, "B X 2"] | None = None  # rows and columns of features, where images differ (Qwen2.5-VL)
    ragged: bool = dataclasses.field(default=False, metadata={"static": True})  # some features are not in the prompt
    images: Int[np.ndarray, "B X"] | None = None  # which image of the row a crop belongs to, -1 = padding
    text_embedding: Float[np.ndarray, "B E"] | None = None  # of the questions, for plans that read it


def arrange(batch: Batch, patches: tuple[int, int], *, step: int = 1) -> Inputs:
    """The inputs for a batch whose crops have `patches` = (rows, columns) features, or images of their own size.

    step: M and T are multiples of it, so that one compiled program serves prompts of many lengths.
    """
    sizes = None
    if batch.grids:
        batch, patches, sizes = on_one_grid(batch, step)
    rows, length = batch.ids.shape
    position = batch.positions if batch.positions.ndim == 3 else batch.positions[None]
    position = np.moveaxis(position, 0, -1).astype(np.int32)
    b, n = np.nonzero(batch.tokens & ~batch.newline & (batch.visual >= 0))
    is_visual = np.zeros((rows, length), bool)
    is_visual[b, batch.visual[b, n]] = True
    is_text = batch.valid & ~is_visual
    before = np.cumsum(is_text, 1, dtype=np.int32)
    places = _places(batch, position, before, patches)
    longest = _up(int(is_text.sum(1).max()), step)
    order = np.argsort(~is_text, 1, kind="stable")[:, :longest]
    newline = np.zeros((rows, length), bool)
    b, n = np.nonzero(batch.newline & (batch.visual >= 0))
    newline[b, batch.visual[b, n]] = True

    def text_only(array: np.ndarray) -> np.ndarray:
        padding = [(0, 0), (0, longest - order.shape[1])] + [(0, 0)] * (array.ndim - 2)
        index = order.reshape(*order.shape, *[1] * (array.ndim - 2))
        return np.pad(np.take_along_axis(array, index, 1), padding)

    valid = text_only(is_text)
    question, question_valid = _question(valid, places, step)
    return Inputs(
        pixels=np.moveaxis(batch.pixels, 2, -1) if batch.pixels is not None and sizes is None else batch.pixels,
        ids=np.where(valid & ~text_only(newline), text_only(batch.ids), 0).astype(np.int32),
        position=text_only(position),
        valid=valid,
        newline=text_only(newline),
        question=question,
        question_valid=question_valid,
        places=places,
        mixture=mixture(batch, patches, position, before) if batch.source.shape[-1] > 1 else None,
        sizes=sizes,
        visible=_up(int(places.inside.sum(1).max()), 1 if sizes is None else step),
        ragged=sizes is not None or not places.inside.all(),
        images=_images(batch, patches),
    )


def _places(batch: Batch, position: np.ndarray, before: np.ndarray, patches: tuple[int, int]) -> Places:
    """Where each feature is placed; `before` counts the text up to every slot."""
    rows, crops = batch.ids.shape[0], 0 if batch.pixels is None else batch.pixels.shape[1]
    each = patches[0] * patches[1]
    where = np.zeros((rows, crops * each, position.shape[-1]), np.int32)
    text, inside = np.zeros(where.shape[:2], np.int32), np.zeros(where.shape[:2], bool)
    b, feature = np.nonzero(batch.home >= 0)
    slot = batch.visual[b, batch.home[b, feature]]
    b, feature, slot = (a[slot >= 0] for a in (b, feature, slot))
    where[b, feature], inside[b, feature] = position[b, slot], True
    text[b, feature] = before[b, slot]
    start = np.broadcast_to(np.arange(crops, dtype=np.int32) * each, (rows, crops))
    return Places(where, text, inside, start, np.full((rows, crops), patches[1], np.int32))


def _images(batch: Batch, patches: tuple[int, int]) -> np.ndarray:
    """The image of every crop, -1 for crops without any feature in the prompt."""
    rows, crops = batch.ids.shape[0], 0 if batch.pixels is None else batch.pixels.shape[1]
    images = np.full((rows, crops), -1, np.int32)
    b, feature = np.nonzero(batch.home >= 0)
    images[b, feature // (patches[0] * patches[1])] = batch.image[b, batch.home[b, feature]]
    return images


def _up(count: int, step: int) -> int:
    return max(-(-count // step), 1) * step


def _question(valid: np.ndarray, places: Places, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the text tokens after the last visual token, which of those are not padding)."""
    count = valid.sum(1)
    first = np.where(places.inside, places.before, 0).max(1, initial=0)
    index = first[:, None] + np.arange(min(_up(int((count - first).max()), step), valid.shape[1]))
    return np.minimum(index, valid.shape[1] - 1).astype(np.int32), index < count[:, None]
