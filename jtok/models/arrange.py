"""From a batch of prompts, ids with every visual token in its place, to the arrays a vision-language model takes.

Text and visual tokens are set apart: text in its order, and for every feature that the tower gives its place in the
prompt. So a program's shapes depend on the length of the text and the number of visual tokens, and on nothing else.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jtok.errors import UserError
from jtok.models.processing.batch import Batch
from jtok.models.sequence import Places


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """B prompts with M tokens of text, X crops a row and F features of them; T tokens of text follow the last image."""

    pixels: Float[np.ndarray, "B X H W C"] | None
    ids: Int[np.ndarray, "B M"]
    position: Int[np.ndarray, "B M P"]
    valid: Bool[np.ndarray, "B M"]
    newline: Bool[np.ndarray, "B M"]  # the learned vector at the end of a row of crops, not an id
    question: Int[np.ndarray, "B T"]  # which of the M
    question_valid: Bool[np.ndarray, "B T"]
    places: Places
    visible: int = dataclasses.field(default=0, metadata={"static": True})  # most features of a row in its prompt


def arrange(batch: Batch, patches: tuple[int, int], *, step: int = 1) -> Inputs:
    """The inputs for a batch whose crops have `patches` = (rows, columns) features.

    step: M and T are multiples of it, so that one compiled program serves prompts of many lengths. Raises UserError
    for resampled grids, whose tokens are no single features.
    """
    rows, length = batch.ids.shape
    if batch.source.shape[-1] > 1:
        raise UserError("a grid of features that is resampled is not supported: give an image that needs fewer crops.")
    position = batch.positions if batch.positions.ndim == 3 else batch.positions[None]
    position = np.moveaxis(position, 0, -1).astype(np.int32)
    b, n = np.nonzero(batch.tokens & ~batch.newline & (batch.visual >= 0))
    slot = batch.visual[b, n]
    feature = batch.source[b, n, 0]
    is_visual = np.zeros((rows, length), bool)
    is_visual[b, slot] = True
    is_text = batch.valid & ~is_visual
    places = _places(batch, position, is_text, (b, slot, feature), patches)
    room = _up(int(is_text.sum(1).max()), step)
    order = np.argsort(~is_text, 1, kind="stable")[:, :room]
    newline = np.zeros((rows, length), bool)
    b, n = np.nonzero(batch.newline & (batch.visual >= 0))
    newline[b, batch.visual[b, n]] = True

    def taken(array: np.ndarray) -> np.ndarray:
        behind = [(0, 0), (0, room - order.shape[1])] + [(0, 0)] * (array.ndim - 2)
        index = order.reshape(*order.shape, *[1] * (array.ndim - 2))
        return np.pad(np.take_along_axis(array, index, 1), behind)

    valid = taken(is_text)
    question, question_valid = _question(valid, places, step)
    return Inputs(
        pixels=None if batch.pixels is None else np.moveaxis(batch.pixels, 2, -1),
        ids=np.where(valid & ~taken(newline), taken(batch.ids), 0).astype(np.int32),
        position=taken(position),
        valid=valid,
        newline=taken(newline),
        question=question,
        question_valid=question_valid,
        places=places,
        visible=int(places.inside.sum(1).max()),
    )


def _places(batch: Batch, position: np.ndarray, is_text: np.ndarray, found, patches: tuple[int, int]) -> Places:
    """Where each feature stands; `found` = (row, slot, feature) of those that are in a prompt."""
    b, slot, feature = found
    rows, crops = batch.ids.shape[0], 0 if batch.pixels is None else batch.pixels.shape[1]
    each = patches[0] * patches[1]
    where = np.zeros((rows, crops * each, position.shape[-1]), np.int32)
    before, inside = np.zeros(where.shape[:2], np.int32), np.zeros(where.shape[:2], bool)
    where[b, feature], inside[b, feature] = position[b, slot], True
    before[b, feature] = np.cumsum(is_text, 1)[b, slot]
    start = np.broadcast_to(np.arange(crops, dtype=np.int32) * each, (rows, crops))
    return Places(where, before, inside, start, np.full((rows, crops), patches[1], np.int32))


def _up(count: int, step: int) -> int:
    return max(-(-count // step), 1) * step


def _question(valid: np.ndarray, places: Places, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens of text come after the last visual token, and which of those are real."""
    count = valid.sum(1)
    first = np.where(places.inside, places.before, 0).max(1, initial=0)
    index = first[:, None] + np.arange(min(_up(int((count - first).max()), step), valid.shape[1]))
    return np.minimum(index, valid.shape[1] - 1).astype(np.int32), index < count[:, None]
