"""Images of any size on one grid, large enough for the largest of a batch (Qwen2.5-VL)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Int

from jtok.models.vlm.processing.batch import Batch

#: Sides are padded to a multiple of this many tokens where programs serve many sizes; windows have the same side.
SIDE_STEP = 4


def on_one_grid(batch: Batch, step: int) -> tuple[Batch, tuple[int, int], Int[np.ndarray, "B X 2"]]:
    """(the batch, rows and columns of the grid, rows and columns that each of X images or frames really has).

    A feature is a quad of patches: `pixels` become [B,X,rows,columns,patches of a quad,values] and `home` counts the
    features of that grid. Sides are multiples of `SIDE_STEP` if `step` is more than one.
    """
    merge = math.isqrt(sum(math.prod(grid) for row in batch.grids for grid in row) // int(batch.tokens.sum()))
    frames = [[(h // merge, w // merge) for t, h, w in row for _ in range(t)] for row in batch.grids]
    most, unit = max(map(len, frames)), SIDE_STEP if step > 1 else 1
    rows, columns = (-(-max(size[axis] for row in frames for size in row) // unit) * unit for axis in (0, 1))
    sizes = np.zeros((len(frames), most, 2), np.int32)
    pixels = np.zeros((len(frames), most, rows, columns, merge**2, batch.pixels.shape[-1]), np.float32)
    for b, row in enumerate(frames):
        at = 0
        for x, (down, across) in enumerate(row):
            count = down * across * merge**2
            pixels[b, x, :down, :across] = batch.pixels[b, at : at + count].reshape(down, across, merge**2, -1)
            sizes[b, x] = down, across
            at += count
    home = np.full((len(frames), most, rows, columns), -1, np.int32)
    b, n = np.nonzero(batch.tokens)
    row, column = batch.position[b, n, 1:].astype(np.int32).T
    home[b, batch.crop[b, n], row, column] = n
    return dataclasses.replace(batch, pixels=pixels, home=home.reshape(len(frames), -1)), (rows, columns), sizes
