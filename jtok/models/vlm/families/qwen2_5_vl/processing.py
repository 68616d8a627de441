"""Qwen2-VL and Qwen2.5-VL (arXiv 2409.12191, 2502.13923): images of any size, as patches in 2x2 quads.

Sides are rounded to multiples of 28 with the number of pixels in a range; patches span two frames and are laid
out quad by quad, because four of them become one token. A still image is two equal frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from jtok.errors import UserError
from jtok.models.vlm.processing.images import normalize, resize
from jtok.models.vlm.processing.layout import Kind, Span, VisualInput
from jtok.models.vlm.processing.prompt import mrope_positions
from jtok.models.vlm.processing.settings import CLIP, ImageSettings

PREPROCESSOR = dict(CLIP, patch_size=14, temporal_patch_size=2, merge_size=2)

#: Least and most pixels of an image and of a video frame.
_PIXELS = {"image": (56 * 56, 28 * 28 * 1280), "video": (128 * 28 * 28, 28 * 28 * 768)}


def settings(fields: Mapping[str, Any], config: Mapping[str, Any], video: Mapping[str, Any]) -> dict[str, Any]:
    """See `Family.settings`."""
    return dict(
        temporal=int(fields["temporal_patch_size"]),
        merge=int(fields["merge_size"]),
        pixels=_pixel_range(fields, _PIXELS["image"]),
        frame_pixels=_pixel_range(video, _PIXELS["video"]),
        ticks=int((config.get("vision_config") or {}).get("tokens_per_second", 4)),
    )


def _pixel_range(fields: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    size = fields.get("size") or {}
    least = fields.get("min_pixels") or size.get("shortest_edge") or default[0]
    most = fields.get("max_pixels") or size.get("longest_edge") or default[1]
    return int(least), int(most)


def positions(
    length: int, visuals: Sequence[VisualInput], offsets: Sequence[int], settings: ImageSettings
) -> Int[np.ndarray, "3 L"]:
    """See `Family.positions`."""
    return mrope_positions(length, visuals, offsets, settings.ticks)


def prepare(images: Sequence[Image.Image], settings: ImageSettings) -> list[VisualInput]:
    """Patches [rows * columns, 3 * temporal * patch * patch] an image."""
    return [_pack("image", [image], settings, settings.pixels) for image in images]


def prepare_video(frames: Sequence[Image.Image], settings: ImageSettings, fps: float) -> VisualInput:
    """Patches of a video; the last frame is repeated to fill the last step. fps: frames shown a second."""
    seconds = settings.temporal / fps
    return _pack("video", frames, settings, settings.frame_pixels, seconds)


def smart_size(size: tuple[int, int], factor: int, pixels: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) nearest to `size` that are multiples of `factor`, their product within `pixels`."""
    height, width = size
    least, most = pixels
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in size)
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in size)
    return rows, columns


def quads(frames: Float[np.ndarray, "F 3 H W"], settings: ImageSettings) -> Float[np.ndarray, "patches values"]:
    """Patches by step, then quad by quad in raster order, then within a quad; values by channel, frame, pixel."""
    patch, merge, temporal = settings.patch, settings.merge, settings.temporal
    count, channels, height, width = frames.shape
    frames = np.concatenate([frames, np.repeat(frames[-1:], -count % temporal, 0)])
    down, across = height // (patch * merge), width // (patch * merge)
    cut = frames.reshape(-1, temporal, channels, down, merge, patch, across, merge, patch)
    return cut.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * temporal * patch * patch)


def _pack(
    kind: Kind, frames: Sequence[Image.Image], settings: ImageSettings, pixels: tuple[int, int], seconds: float = 1.0
) -> VisualInput:
    size = frames[0].height, frames[0].width
    rows, columns = smart_size(size, settings.patch * settings.merge, pixels)
    if not rows * columns:
        raise UserError(f"an image of {size[0]} x {size[1]} pixels rounds to {rows} x {columns}: give a larger one.")
    resized = np.stack([np.asarray(resize(frame, (rows, columns), settings.resample)) for frame in frames])
    normal = normalize(resized, settings.scale, settings.mean, settings.std)
    steps = -(-len(frames) // settings.temporal)
    grid = steps, rows // settings.patch, columns // settings.patch
    merged = grid[1] // settings.merge, grid[2] // settings.merge
    span = Span(kind, merged, merged, frames=steps)
    return VisualInput(kind, quads(normal, settings), size, (span,), span.tokens, grid=grid, seconds=seconds)
