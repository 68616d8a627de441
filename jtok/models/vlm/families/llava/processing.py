"""LLaVA-1.5 (arXiv 2310.03744): one crop per image, as for CLIP, and its patches in raster order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jtok.models.vlm.processing.images import center_crop, normalize, pad_to_square, resize, resize_shortest
from jtok.models.vlm.processing.layout import Span, VisualInput
from jtok.models.vlm.processing.settings import CLIP, ImageSettings, square_sizes

PREPROCESSOR = dict(CLIP, do_center_crop=True, do_pad=False)


def settings(fields: Mapping[str, Any], config: Mapping[str, Any], video: Mapping[str, Any]) -> dict[str, Any]:
    """See `Family.settings`."""
    del video
    sizes = square_sizes(fields, config.get("vision_config") or {})
    return dict(sizes, pad=bool(fields["do_pad"]), class_token=takes_class_token(config))


def takes_class_token(config: Mapping[str, Any]) -> bool:
    """Whether the class token of a CLIP tower is among the visual tokens."""
    kind = (config.get("vision_config") or {}).get("model_type", "clip_vision_model")
    return kind == "clip_vision_model" and config.get("vision_feature_select_strategy", "default") == "full"


def prepare(images: Sequence[Image.Image], settings: ImageSettings) -> list[VisualInput]:
    """One crop [1, 3, side, side] an image: padded to a square if the checkpoint says so, resized, cropped."""
    return [_prepare(image, settings) for image in images]


def mean_colour(settings: ImageSettings) -> tuple[int, int, int]:
    """The mean as 8-bit RGB, rounded down: what squares are padded with."""
    red, green, blue = (int(value * 255) for value in settings.mean)
    return red, green, blue


def crop_pixels(image: Image.Image, settings: ImageSettings) -> np.ndarray:
    """One crop, uint8 [side, side, 3]: resized, then the middle of it where the checkpoint says so."""
    if settings.shortest:
        image = resize_shortest(image, settings.shortest, settings.resample)
    else:
        image = resize(image, (settings.side, settings.side), settings.resample)
    pixels = np.asarray(image)
    return pixels if settings.crop is None else center_crop(pixels, settings.crop)


def _prepare(image: Image.Image, settings: ImageSettings) -> VisualInput:
    squared = pad_to_square(image, mean_colour(settings)) if settings.pad else image
    pixels = normalize(crop_pixels(squared, settings)[None], settings.scale, settings.mean, settings.std)
    patches = (settings.side // settings.patch,) * 2
    span = Span("image", patches, patches, special=int(settings.class_token))
    return VisualInput("image", pixels, (image.height, image.width), (span,), span.tokens)
