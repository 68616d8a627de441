"""Llama-3.2-Vision (Mllama; arXiv 2407.21783): an image is cut into at most four tiles, read by cross-attention.

The image is fitted into the arrangement of tiles that needs the least upscaling (or else the least
downscaling), at the top left of a black canvas. All images have the same number of tiles: missing ones are zeros after
normalisation. The prompt holds one id per image; the cross-attention mask says which tiles a token may attend to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jtok.models.vlm.processing.images import normalize, resize
from jtok.models.vlm.processing.layout import Span, VisualInput
from jtok.models.vlm.processing.settings import BILINEAR, SIGLIP, ImageSettings, square_sizes

PREPROCESSOR = dict(SIGLIP, resample=BILINEAR, max_image_tiles=4)


def settings(fields: Mapping[str, Any], config: Mapping[str, Any], video: Mapping[str, Any]) -> dict[str, Any]:
    """See `Family.settings`."""
    del video
    sizes = square_sizes(fields, config.get("vision_config") or {})
    return dict(sizes, tiles=int(fields["max_image_tiles"]), class_token=True)


def prepare(images: Sequence[Image.Image], settings: ImageSettings) -> list[VisualInput]:
    """[tiles, 3, side, side] an image, with a span and a class token a tile."""
    return [_prepare(image, settings) for image in images]


def arrangements(tiles: int) -> list[tuple[int, int]]:
    """Tiles (down, across) that an image may have; the id of an arrangement is its place here plus one."""
    sides = range(1, tiles + 1)
    return [(down, across) for down in sides for across in sides if down * across <= tiles]


def best_arrangement(size: tuple[int, int], side: int, tiles: int) -> tuple[int, int]:
    """The arrangement with the least enlargement, else the least shrinking; of equal ones the smallest, the first."""
    scales = {a: min(a[0] * side / size[0], a[1] * side / size[1]) for a in arrangements(tiles)}
    larger = [scale for scale in scales.values() if scale >= 1]
    chosen = min(larger) if larger else max(scales.values())
    return min((a for a, scale in scales.items() if scale == chosen), key=lambda a: a[0] * a[1])


def _prepare(image: Image.Image, settings: ImageSettings) -> VisualInput:
    side = settings.side
    size = image.height, image.width
    down, across = best_arrangement(size, side, settings.tiles)
    canvas = Image.new("RGB", (across * side, down * side))
    canvas.paste(resize(image, _fitted(size, (down * side, across * side), side), settings.resample))
    normal = normalize(np.asarray(canvas), settings.scale, settings.mean, settings.std)
    cut = normal.reshape(3, down, side, across, side).transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    pixels = np.zeros((settings.tiles, *cut.shape[1:]), np.float32)
    pixels[: len(cut)] = cut
    patches = (side // settings.patch,) * 2
    spans = tuple(Span("image", patches, patches, crop=tile, special=1) for tile in range(len(cut)))
    aspect = arrangements(settings.tiles).index((down, across)) + 1
    return VisualInput("image", pixels, size, spans, slots=1, aspect=aspect, real=len(cut))


def _fitted(size: tuple[int, int], canvas: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows, columns after scaling into the canvas: up to the size of a tile at most, down as needed."""
    target = [min(max(have, side), limit) for have, limit in zip(size, canvas, strict=True)]
    by_height, by_width = target[0] / size[0], target[1] / size[1]
    if by_width < by_height:
        return min(math.floor(size[0] * by_width) or 1, target[0]), target[1]
    return target[0], min(math.floor(size[1] * by_height) or 1, target[1])
