"""LLaVA-NeXT, any resolution: the whole image as one crop first, then a mosaic of crops at the best of some shapes.

The image is fitted into the shape ("pinpoint") that keeps most of its pixels and wastes least, centred on black, and
cut into crops. Features of the black border are removed, and a newline token ends every remaining row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jtok.errors import UserError
from jtok.models.vlm.families.llava.processing import crop_pixels, takes_class_token
from jtok.models.vlm.processing.images import normalize, resize
from jtok.models.vlm.processing.layout import Span, VisualInput
from jtok.models.vlm.processing.settings import CLIP, ImageSettings, square_sizes

_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
PREPROCESSOR = dict(CLIP, do_center_crop=True, image_grid_pinpoints=_PINPOINTS)


def settings(fields: Mapping[str, Any], config: Mapping[str, Any], video: Mapping[str, Any]) -> dict[str, Any]:
    """See `Family.settings`. Raises UserError for a class token among the visual tokens."""
    del video
    sizes = square_sizes(fields, config.get("vision_config") or {})
    if takes_class_token(config):
        raise UserError("crops with class tokens make no grid: vision_feature_select_strategy must be 'default'.")
    points = config.get("image_grid_pinpoints") or fields["image_grid_pinpoints"]
    return dict(sizes, pinpoints=tuple((int(rows), int(columns)) for rows, columns in points))


def prepare(images: Sequence[Image.Image], settings: ImageSettings) -> list[VisualInput]:
    """[1 + crops, 3, side, side] an image, and spans for the whole image and for the mosaic."""
    return [mosaic(image, settings) for image in images]


def mosaic(image: Image.Image, settings: ImageSettings) -> VisualInput:
    """An image as its base crop and a mosaic of crops."""
    size = image.height, image.width
    point = best_pinpoint(size, settings.pinpoints)
    side, filter_ = settings.side, settings.resample
    canvas = _fit(image, point, filter_)
    whole = resize(image, (side, side), filter_)
    boxes = [(x, y, x + side, y + side) for y in range(0, point[0], side) for x in range(0, point[1], side)]
    crops = [crop_pixels(crop, settings) for crop in (whole, *(canvas.crop(box) for box in boxes))]
    pixels = normalize(np.stack(crops), settings.scale, settings.mean, settings.std)
    spans = mosaic_spans(size, point, settings)
    return VisualInput("image", pixels, size, spans, sum(span.tokens for span in spans))


def best_pinpoint(size: tuple[int, int], pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The shape (rows, columns) that keeps most pixels; of equal ones the smallest, then the first."""
    height, width = size
    best, best_rank = None, (0, -math.inf)
    for rows, columns in pinpoints:
        scale = min(columns / width, rows / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        rank = used, used - rows * columns
        if used and rank > best_rank:
            best, best_rank = (rows, columns), rank
    if best is None:
        raise UserError(f"an image of {height} x {width} pixels vanishes in every shape of image_grid_pinpoints.")
    return best


def mosaic_spans(size: tuple[int, int], point: tuple[int, int], settings: ImageSettings) -> tuple[Span, Span]:
    """The base crop's span, and the mosaic's with the border cut away and rows closed by newline tokens."""
    patches = (settings.side // settings.patch,) * 2
    tiles = point[0] // settings.side, point[1] // settings.side
    window = _unpadded(size, (tiles[0] * patches[0], tiles[1] * patches[1]))
    grid = _capped(window[2:], patches[0], settings.max_crops)
    base = Span("image", patches, patches)
    return base, Span("image", grid, patches, crop=1, tiles=tiles, window=window, newline="row")


def _fit(image: Image.Image, point: tuple[int, int], filter_: int) -> Image.Image:
    """The image scaled to fit, in the middle of a black canvas of rows, columns `point`."""
    (rows, columns), (height, width) = point, (image.height, image.width)
    if columns / width < rows / height:
        size = min(math.ceil(height * (columns / width)), rows), columns
    else:
        size = rows, min(math.ceil(width * (rows / height)), columns)
    canvas = Image.new("RGB", (columns, rows))
    canvas.paste(resize(image, size, filter_), ((columns - size[1]) // 2, (rows - size[0]) // 2))
    return canvas


def _unpadded(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int, int, int]:
    """top, left, rows, columns of the features that show the image; a strip thinner than a patch may leave none."""
    (height, width), (rows, columns) = size, grid
    if width / height > columns / rows:
        margin = (rows - int(round(height * (columns / width), 7))) // 2
        return margin, 0, rows - 2 * margin, columns
    margin = (columns - int(round(width * (rows / height), 7))) // 2
    return 0, margin, rows, columns - 2 * margin


def _capped(grid: tuple[int, int], patches: int, max_crops: int) -> tuple[int, int]:
    """Grid of a mosaic with at most about `max_crops` crops' worth of features; the reference tolerates 1.1 a side."""
    if not max_crops:
        return grid
    ratio = math.sqrt(grid[0] * grid[1] / (max_crops * patches**2))
    return (int(grid[0] // ratio), int(grid[1] // ratio)) if ratio > 1.1 else grid
