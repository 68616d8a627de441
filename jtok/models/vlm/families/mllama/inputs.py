"""Turns a batch of prompts into the arrays of a model that cross-attends to tiles (Llama-3.2-Vision)."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jtok.models.vlm.processing.batch import Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TiledInputs:
    """B prompts with M ids, images' placeholders included; T of them follow the last image.

    Of the X tiles per row, at most V are real in any row, and up to F others pad images.
    """

    pixels: Float[np.ndarray, "B X H W C"] | None
    ids: Int[np.ndarray, "B M"]
    position: Int[np.ndarray, "B M 1"]
    valid: Bool[np.ndarray, "B M"]
    question: Int[np.ndarray, "B T"]  # which of the M
    question_valid: Bool[np.ndarray, "B T"]
    aspects: Int[np.ndarray, "B I"]  # arrangement of each image's tiles; 0 = no image
    real: Bool[np.ndarray, "B X"]  # tiles that show something
    order: Int[np.ndarray, "B V"]  # the real ones of each row, -1 = none
    filling: Int[np.ndarray, "B F"]  # tiles that pad images, -1 = none; F is 0 where no text precedes an image
    visible: Bool[np.ndarray, "B M V"]  # real tiles that an id may attend to


def arrange_tiles(batch: Batch, *, step: int = 1) -> TiledInputs:
    """The inputs for a batch. M and T are multiples of `step`, so that one program serves prompts of many lengths."""
    rows, longest = batch.ids.shape
    m = _up(longest, step)
    padding = ((0, 0), (0, m - longest))
    if batch.pixels is None:
        aspects, real, visible = np.zeros((rows, 0), np.int32), np.zeros((rows, 0), bool), np.zeros((rows, m, 0), bool)
    else:
        aspects, real = batch.aspects, batch.real
        visible = np.pad(batch.cross.reshape(rows, longest, -1), (*padding, (0, 0)))
    order = _listed(real)
    of_image = np.repeat(aspects > 0, real.shape[1] // max(aspects.shape[1], 1), 1)
    sees_nothing = (batch.valid & ~visible[:, :longest].any(2)).any(1) & of_image.any(1)
    first = _after_images(aspects, visible)
    count = batch.valid.sum(1)
    index = first[:, None] + np.arange(min(_up(int((count - first).max(initial=0)), step), m))
    return TiledInputs(
        pixels=None if batch.pixels is None else np.moveaxis(batch.pixels, 2, -1),
        ids=np.pad(np.where(batch.valid, batch.ids, 0), padding).astype(np.int32),
        position=np.pad(batch.positions, padding)[..., None].astype(np.int32),
        valid=np.pad(batch.valid, padding),
        question=np.minimum(index, m - 1).astype(np.int32),
        question_valid=index < count[:, None],
        aspects=aspects.astype(np.int32),
        real=real,
        order=order,
        filling=_listed(of_image & ~real & sees_nothing.any()),
        visible=np.take_along_axis(visible, order.clip(0)[:, None], 2) & (order >= 0)[:, None],
    )


def _listed(mask: np.ndarray) -> np.ndarray:
    """int32 [B,K]: indices where each row is True, in order, then -1; K is the largest count of a row."""
    count = mask.sum(1)
    index = np.argsort(~mask, 1, kind="stable")[:, : int(count.max(initial=0))]
    return np.where(np.arange(index.shape[1]) < count[:, None], index, -1).astype(np.int32)


def _after_images(aspects: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Slot after the last image's placeholder; the placeholder is the first slot that may attend to its image."""
    rows, images = aspects.shape
    if not images:
        return np.zeros(rows, int)
    last = (aspects > 0).sum(1) - 1
    first_tile = last.clip(0) * (visible.shape[2] // images)
    placeholder = np.argmax(np.take_along_axis(visible, first_tile[:, None, None], 2)[..., 0], 1)
    return np.where(last >= 0, placeholder + 1, 0)


def _up(count: int, step: int) -> int:
    return max(-(-count // step), 1) * step
