"""Image settings: what a checkpoint's preprocessor does to an image before its tower reads it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jtok.errors import UserError

BILINEAR, BICUBIC = 2, 3  # numbers of Pillow's filters

#: What the preprocessors of CLIP and SigLIP do where a file does not say: names as in preprocessor_config.json.
CLIP: dict[str, Any] = dict(
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
    resample=BICUBIC,
    rescale_factor=1 / 255,
)
SIGLIP: dict[str, Any] = dict(CLIP, image_mean=(0.5,) * 3, image_std=(0.5,) * 3, do_center_crop=False)


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How a checkpoint wants its images. Fields that a family does not use keep their defaults."""

    family: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float  # multiplies pixel values before mean and std
    resample: int  # number of Pillow's filter
    patch: int  # pixels a side of the tower's patches
    side: int = 0  # pixels a side of what the tower sees (0: any size, Qwen2.5-VL)
    shortest: int = 0  # the shorter side is resized to this; 0 = both sides to `side`, whatever the shape
    crop: tuple[int, int] | None = None  # rows, columns of the centre crop
    pad: bool = False  # to a square of the mean colour, before anything else
    class_token: bool = False  # the tower's class token is kept among the visual tokens
    pinpoints: tuple[tuple[int, int], ...] = ()  # rows, columns of pixels that mosaics may have
    max_crops: int = 0  # a mosaic with over 1.21 times this many features is resampled to this many; 0 = never
    tiles: int = 0  # most tiles an image is cut into (Llama-3.2-Vision)
    temporal: int = 1  # frames a patch spans
    merge: int = 1  # patches per side of one token
    pixels: tuple[int, int] = (0, 0)  # least and most pixels of an image
    frame_pixels: tuple[int, int] = (0, 0)  # least and most pixels of a video frame
    ticks: int = 1  # temporal positions a second


def read_json(directory: str | pathlib.Path, name: str, *, required: bool = False) -> dict[str, Any]:
    """A JSON object of the directory; empty if the file is missing and not required. Raises UserError."""
    path = pathlib.Path(directory) / name
    if not path.is_file():
        if required:
            raise UserError(f"'{directory}' has no {name}: give the directory of a Hugging Face checkpoint.")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(f"'{path}' holds a JSON {type(value).__name__} where an object is expected.")
    return value


def square_sizes(fields: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, Any]:
    """side, shortest and crop of a tower that takes squares.

    fields: of preprocessor_config.json, whose sizes are a number, {shortest_edge} or {height, width}. tower: the
    vision_config. Raises UserError for other shapes, and where the two disagree.
    """
    side = int(tower.get("image_size", 336))
    size = fields.get("size", {"shortest_edge": side} if fields["do_center_crop"] else {"height": side, "width": side})
    if isinstance(size, int):
        size = {"shortest_edge": size} if fields["do_center_crop"] else {"height": size, "width": size}
    if size.get("height") != size.get("width"):
        raise UserError(f"the preprocessor's size is {size}, and the towers of these models see squares.")
    shortest = int(size.get("shortest_edge") or 0)
    crop = fields.get("crop_size", side) if fields["do_center_crop"] else None
    if isinstance(crop, Mapping):
        crop = crop["height"], crop["width"]
    elif crop is not None:
        crop = crop, crop
    made = crop or (shortest or size["height"],) * 2
    if "image_size" in tower and made != (side, side):
        raise UserError(f"the preprocessor makes {made[0]} x {made[1]} pixels and the tower takes {side} x {side}.")
    return dict(side=int(made[0]), shortest=shortest, crop=crop)
