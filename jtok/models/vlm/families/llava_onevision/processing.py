"""LLaVA-OneVision (arXiv 2408.03326): mosaics as LLaVA-NeXT, resampled when large; several images or frames as crops.

A single image is a mosaic; where a prompt has several, each is one padded square with a newline token after it. Video
frames are one crop each, their features resampled to half the side, with one newline token after the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jtok.errors import UserError
from jtok.models.vlm.families.llava.processing import crop_pixels, mean_colour
from jtok.models.vlm.families.llava_next import processing as llava_next
from jtok.models.vlm.processing.images import normalize, pad_to_square
from jtok.models.vlm.processing.layout import Span, VisualInput
from jtok.models.vlm.processing.settings import CLIP, ImageSettings

_PINPOINTS = tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7))
PREPROCESSOR = dict(CLIP, do_center_crop=False, image_grid_pinpoints=_PINPOINTS)


def settings(fields: Mapping[str, Any], config: Mapping[str, Any], video: Mapping[str, Any]) -> dict[str, Any]:
    """See `Family.settings`. Raises UserError for a way of cutting crops that jtok does not have."""
    mosaics = llava_next.settings(fields, config, video)
    name = config.get("vision_aspect_ratio", "anyres_max_9")
    count = name.removeprefix("anyres_max_")
    if not count.isdigit() or count == name:
        raise UserError(f"vision_aspect_ratio is '{name}', and the known ones are 'anyres_max_' and a number.")
    return dict(mosaics, max_crops=int(count))


def prepare(images: Sequence[Image.Image], settings: ImageSettings) -> list[VisualInput]:
    """All images of one prompt: a single image becomes a mosaic, several one crop [1, 3, side, side] each."""
    if len(images) == 1:
        return [llava_next.mosaic(images[0], settings)]
    return [_single(image, settings) for image in images]


def prepare_video(frames: Sequence[Image.Image], settings: ImageSettings, fps: float) -> VisualInput:
    """A video [frames, 3, side, side]; `fps` leaves no trace in this family."""
    del fps
    crops = np.stack([crop_pixels(frame, settings) for frame in frames])
    pixels = normalize(crops, settings.scale, settings.mean, settings.std)
    patches = (settings.side // settings.patch,) * 2
    grid = (-(-patches[0] // 2),) * 2
    span = Span("video", grid, patches, frames=len(frames), newline="end")
    return VisualInput("video", pixels, (frames[0].height, frames[0].width), (span,), span.tokens)


def _single(image: Image.Image, settings: ImageSettings) -> VisualInput:
    square = pad_to_square(image, mean_colour(settings))
    pixels = normalize(crop_pixels(square, settings)[None], settings.scale, settings.mean, settings.std)
    patches = (settings.side // settings.patch,) * 2
    span = Span("image", patches, patches, newline="end")
    return VisualInput("image", pixels, (image.height, image.width), (span,), span.tokens)
