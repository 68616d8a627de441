"""LLaVA-OneVision (arXiv 2408.03326): mosaics as LLaVA-NeXT, resampled when large; several images or frames as crops.

A single image is a mosaic; where a prompt has several, each is one padded square with a newline token after it. Video
frames are one crop each, their features resampled to half the side, with one newline token after the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from jtok.models.vlm.families.llava.processing import crop_pixels, mean_colour
from jtok.models.vlm.families.llava_next.processing import mosaic
from jtok.models.vlm.processing.images import normalize, pad_to_square
from jtok.models.vlm.processing.layout import Span, VisualInput
from jtok.models.vlm.processing.settings import ImageSettings


def prepare(images: Sequence[Image.Image], settings: ImageSettings) -> list[VisualInput]:
    """All images of one prompt: a mosaic if there is one, else a crop [1, 3, side, side] each."""
    if len(images) == 1:
        return [mosaic(images[0], settings)]
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
