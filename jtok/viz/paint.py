"""Painting a token set onto its image: fills, outlines and heat maps, pixel by pixel from the owner map.

A canvas is the image enlarged by a whole factor, uint8 [S,T,3]; the patch under each of its pixels follows from the
grid alone, so that any grid fits any canvas.
"""

from __future__ import annotations

import colorsys

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from jtok.errors import UserError

VEIL, LEFT = 112, 0.18  # dropped patches fade to this grey, with this share of their contrast left
PIXELS, MEAN, TINT = 0.15, 0.5, 0.35  # what fills a merged group: its pixels, their mean colour, the token's colour
HEAT = 0.75  # share of the colour map in a score map


def enlarge(image: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "S T 3"]:
    """The image at the largest whole factor that stays within `side` pixels (no smoothing), or shrunk to `side`.

    Raises UserError for anything but a uint8 [H,W,3] image.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"a figure is drawn from a uint8 [H,W,3] image, not {image.dtype} {list(image.shape)}.")
    longest = max(image.shape[:2])
    if longest > side:
        height, width = (max(1, round(n * side / longest)) for n in image.shape[:2])
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    factor = side // longest
    return image.repeat(factor, 0).repeat(factor, 1)


def to_pixels(values: np.ndarray, grid: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """[N0,...] values of patches in raster order, spread over a canvas: [S,T,...].

    Raises UserError when the values are not one for each patch of the grid.
    """
    values = np.asarray(values)
    rows, columns = grid
    if len(values) != rows * columns:
        raise UserError(
            f"a grid of {rows}x{columns} has {rows * columns} patches, but {len(values)} values were given."
        )
    row, column = np.arange(shape[0]) * rows // shape[0], np.arange(shape[1]) * columns // shape[1]
    return values.reshape(rows, columns, *values.shape[1:])[row[:, None], column[None, :]]


def group_sizes(owner: Int[np.ndarray, " N0"], special: int) -> Int[np.ndarray, " N0"]:
    """For each patch how many patches its token holds; 0 where it was dropped (or a special token took it)."""
    owner = np.where(np.asarray(owner) >= special, owner, -1)
    _, inverse, counts = np.unique(owner, return_inverse=True, return_counts=True)
    return np.where(owner >= 0, counts[inverse.reshape(-1)], 0)


def hues(owner: Int[np.ndarray, " N0"]) -> UInt8[np.ndarray, "N0 3"]:
    """A vivid colour for each token, far apart for tokens that follow each other in raster order."""
    _, first, inverse = np.unique(np.asarray(owner), return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    turn = [colorsys.hsv_to_rgb((0.58 + 0.618034 * r) % 1, 0.55 + 0.3 * (r % 2), 1.0) for r in rank]
    return (255 * np.array(turn)).astype(np.uint8)[inverse.reshape(-1)]


def outline(labels: Int[np.ndarray, "S T"], width: int) -> Bool[np.ndarray, "S T"]:
    """Pixels within `width` of a place where the label changes, on the inner side of both; the rim counts as one."""
    padded = np.pad(labels, width, constant_values=np.iinfo(np.int64).min)
    edge = np.zeros(labels.shape, bool)
    height, breadth = labels.shape
    for step in range(1, width + 1):
        for dy, dx in ((step, 0), (-step, 0), (0, step), (0, -step)):
            edge |= padded[width + dy : width + dy + height, width + dx : width + dx + breadth] != labels
    return edge


def paint_tokens(
    canvas: UInt8[np.ndarray, "S T 3"], owner: Int[np.ndarray, " N0"], grid: tuple[int, int], special: int
) -> UInt8[np.ndarray, "S T 3"]:
    """The image as its tokens hold it.

    A patch with a token of its own shows its pixels. Patches that share a token are filled with their mean colour and
    outlined, all parts tinted in the colour of that token. Dropped patches fade to flat grey (not to black: a scene's
    background may be black).
    """
    owner = np.asarray(owner).astype(np.int64)
    shape = canvas.shape[:2]
    size = to_pixels(group_sizes(owner, special), grid, shape)
    token = to_pixels(owner, grid, shape)
    out = np.where((size == 0)[..., None], _veiled(canvas), canvas.astype(np.float64))
    merged = size > 1
    if merged.any():
        _, group = np.unique(token[merged], return_inverse=True)
        count = np.bincount(group)
        mean = np.stack([np.bincount(group, canvas[..., c][merged]) / count for c in range(3)], -1)[group]
        colour = to_pixels(hues(owner), grid, shape)
        out[merged] = PIXELS * out[merged] + MEAN * mean + TINT * colour[merged]
        edge = outline(token, _line(shape, grid)) & merged
        out[edge] = colour[edge]
    return out.round().astype(np.uint8)


def paint_score(
    canvas: UInt8[np.ndarray, "S T 3"],
    score: Float[np.ndarray, " N0"],
    owner: Int[np.ndarray, " N0"],
    grid: tuple[int, int],
    special: int,
) -> UInt8[np.ndarray, "S T 3"]:
    """Scores in viridis over the grey image, patches that keep a token of their own outlined in white.

    Patches without a score (nan: dropped before) are grey, as in `paint_tokens`.
    """
    shape = canvas.shape[:2]
    score = np.asarray(score, np.float64)
    level = to_pixels(_normalise(score), grid, shape)
    grey = canvas.mean(-1, keepdims=True)
    colour = 255 * matplotlib.colormaps["viridis"](np.nan_to_num(level))[..., :3]
    out = np.where(np.isnan(level)[..., None], _veiled(canvas), HEAT * colour + (1 - HEAT) * grey)
    kept = to_pixels(group_sizes(owner, special) == 1, grid, shape)
    if not kept.all():
        width = _line(shape, grid)
        out[outline(kept.astype(np.int64), width + 1) & kept] = 0
        out[outline(kept.astype(np.int64), width) & kept] = 255
    return out.round().astype(np.uint8)


def draw_box(canvas: UInt8[np.ndarray, "S T 3"], box: Float[np.ndarray, " 4"], shape: tuple[int, int]) -> Image.Image:
    """The canvas with a box, given as (y0, x0, y1, x1) in pixels of an image of `shape` (height, width)."""
    drawn = Image.fromarray(canvas)
    scale = canvas.shape[0] / shape[0], canvas.shape[1] / shape[1]
    y0, x0, y1, x1 = (float(v) * scale[i % 2] for i, v in enumerate(box))
    pen = ImageDraw.Draw(drawn)
    for grow, colour in ((2, "black"), (1, "#ffe600"), (0, "#ffe600")):
        pen.rectangle((x0 - grow, y0 - grow, x1 - 1 + grow, y1 - 1 + grow), outline=colour)
    return drawn


def tokens_in_box(
    owner: Int[np.ndarray, " N0"],
    grid: tuple[int, int],
    special: int,
    box: Float[np.ndarray, " 4"],
    shape: tuple[int, int],
) -> tuple[int, int]:
    """(distinct tokens that hold the patches touched by the box, patches touched by it)."""
    rows, columns = grid
    y0, x0, y1, x1 = (float(v) for v in box)
    y, x = np.arange(rows) * shape[0] / rows, np.arange(columns) * shape[1] / columns
    inside = np.outer((y < y1) & (y + shape[0] / rows > y0), (x < x1) & (x + shape[1] / columns > x0)).reshape(-1)
    held = np.asarray(owner)[inside]
    return len(np.unique(held[held >= special])), int(inside.sum())


def _veiled(canvas: np.ndarray) -> np.ndarray:
    return LEFT * canvas.mean(-1, keepdims=True) + (1 - LEFT) * VEIL


def _line(shape: tuple[int, int], grid: tuple[int, int]) -> int:
    """Width of outlines: a twelfth of a patch, at least a pixel."""
    return max(1, min(shape[0] // grid[0], shape[1] // grid[1]) // 12)


def _normalise(score: Float[np.ndarray, " N0"]) -> Float[np.ndarray, " N0"]:
    """To [0,1] between the least and the 98th percentile, because one outlier would darken the rest; nan stays."""
    finite = score[np.isfinite(score)]
    if not finite.size:
        return np.where(np.isnan(score), np.nan, (score > 0).astype(float))
    low, high = finite.min(), np.quantile(finite, 0.98)
    high = high if high > low else finite.max()
    level = np.clip((score - low) / (high - low), 0, 1) if high > low else np.where(np.isfinite(score), 0.5, score)
    return np.clip(level, 0, 1)
