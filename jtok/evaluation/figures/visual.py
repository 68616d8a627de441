"""Which visual tokens of a prompt a vision-language model kept, drawn on what its tower saw: a row for each crop."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jtok.errors import UserError
from jtok.evaluation.figures.gallery import few
from jtok.models.vlm.processing import ImageSettings
from jtok.viz.tokens import Stage, draw_crops

MOST_CROPS = 6  # of a mosaic or of several images; the first of a mosaic is the whole image


def draw_reading(model: Any, inputs: Any, reading: Any, *, title: str = "") -> Image.Image:
    """The picture of one prompt: for each crop what the tower saw, then what every site left of it.

    model: a `VLM`; inputs: what it read, one row; reading: what `VLM.read` returned. Of a mosaic or of several images
    the first crops are drawn. Raises UserError for a batch and for a prompt without an image.
    """
    if inputs.pixels is None or inputs.pixels.shape[0] != 1:
        raise UserError("a figure is drawn of one prompt with an image.")
    crops, rows = inputs.pixels.shape[1], []
    for crop in range(min(crops, MOST_CROPS)):
        seen, grid, there = _picture(np.asarray(inputs.pixels[0, crop]), _size(inputs, crop), model.processor.settings)
        grid = grid or model.plan.grid or model.config.grid
        stages = [_of_crop(stage, crop, crops, grid, there) for stage in _stages(model, reading)]
        shown = grid if there is None else there
        rows.append((seen, [stage for stage in stages if stage is not None], shown))
    return draw_crops(rows, title=title)


def _stages(model: Any, reading: Any) -> list[Stage]:
    """(site, owners, scores) in the order of the plan; an owner is -1 where no token of the image holds a patch."""
    special = model.config.target().special
    found: list[Stage] = []
    for site in few([site for site in model.plan.sites if str(site) in reading.stages]):
        stage = reading.stages[str(site)]
        owner = np.asarray(stage.owner)
        owner = np.where(owner >= special, owner, -1) if site.stage == "tower" else owner
        found.append((str(site), owner, None if stage.score is None else np.asarray(stage.score)))
    visual = getattr(reading.sequence, "visual", None)
    if visual is not None and (model.plan.projector is not None or not found):
        owner, live = np.asarray(visual.owner), np.asarray(visual.mask())
        found.append(("decoder", np.where(np.take_along_axis(live, np.maximum(owner, 0), 1), owner, -1), None))
    return found


def _of_crop(stage: Stage, crop: int, crops: int, grid: tuple[int, int], there: tuple[int, int] | None) -> Stage | None:
    """One crop's part of a stage; None where its map is none of this grid (a mosaic that was resampled)."""
    site, *maps = stage
    if maps[0].size != crops * grid[0] * grid[1]:
        return None
    rows, columns = there or grid
    parts = [None if a is None else a.reshape(crops, *grid)[crop, :rows, :columns].reshape(-1) for a in maps]
    return site, parts[0], parts[1]


def _size(inputs: Any, crop: int) -> tuple[int, int] | None:
    """Rows and columns of tokens of an image, where images differ in them."""
    sizes = getattr(inputs, "sizes", None)
    return None if sizes is None else (int(sizes[0, crop, 0]), int(sizes[0, crop, 1]))


def _picture(pixels: Float[np.ndarray, " ..."], size: tuple[int, int] | None, settings: ImageSettings):
    """(uint8 [H,W,3] of normalised pixels, the grid of its token map, how much of that grid the image fills)."""
    if size is None:
        return _bytes(pixels, settings), None, None
    rows, columns, area, _ = pixels.shape  # of tokens, each of merge x merge patches of [3, frames, patch, patch]
    merge, patch = settings.merge, settings.patch
    blocks = pixels.reshape(rows, columns, area // merge, merge, 3, settings.temporal, patch, patch)[:, :, :, :, :, 0]
    whole = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * merge * patch, columns * merge * patch, 3)
    side = merge * patch
    return _bytes(whole[: size[0] * side, : size[1] * side], settings), (rows, columns), size


def _bytes(pixels: Float[np.ndarray, "H W 3"], settings: ImageSettings) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels as they were before they were normalised."""
    plain = (pixels * np.asarray(settings.std) + np.asarray(settings.mean)) / settings.scale
    return np.clip(np.round(plain), 0, 255).astype(np.uint8)
