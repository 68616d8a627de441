"""Image settings of a checkpoint directory: its preprocessor's file, then its model's config, then the family's own.

Only what the six families use is read. A switch that would turn off a step every one of them takes (`do_resize`,
`do_rescale`, `do_normalize`) is refused rather than obeyed.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jtok.errors import UserError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
BILINEAR, BICUBIC = 2, 3  # numbers of Pillow's filters
NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))

_CLIP: dict[str, Any] = dict(image_mean=CLIP_MEAN, image_std=CLIP_STD, resample=BICUBIC, rescale_factor=1 / 255)
_SIGLIP = dict(_CLIP, image_mean=HALF, image_std=HALF, do_center_crop=False)

#: What a family's preprocessor does where neither file says: names as in preprocessor_config.json.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llava": dict(_CLIP, do_center_crop=True, do_pad=False),
    "llava_next": dict(_CLIP, do_center_crop=True, image_grid_pinpoints=NEXT_PINPOINTS),
    "llava_onevision": dict(
        _CLIP,
        do_center_crop=False,
        image_grid_pinpoints=tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7)),
    ),
    "qwen2_5_vl": dict(_CLIP, patch_size=14, temporal_patch_size=2, merge_size=2),
    "paligemma": _SIGLIP,
    "mllama": dict(_SIGLIP, resample=BILINEAR, max_image_tiles=4),
}

#: Least and most pixels of an image and of a video frame of Qwen2.5-VL.
QWEN_PIXELS = {"image": (56 * 56, 28 * 28 * 1280), "video": (128 * 28 * 28, 28 * 28 * 768)}


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
    max_crops: int = 0  # a mosaic of more than 1.21 times as many features is resampled to as many; 0 = never
    tiles: int = 0  # most tiles an image is cut into (Llama-3.2-Vision)
    temporal: int = 1  # frames a patch spans
    merge: int = 1  # patches a side that one token stands for
    pixels: tuple[int, int] = (0, 0)  # least and most pixels of an image
    frame_pixels: tuple[int, int] = (0, 0)  # least and most pixels of a video frame
    ticks: int = 1  # temporal positions a second


def read_json(directory: str | pathlib.Path, name: str, *, required: bool = False) -> dict[str, Any]:
    """A JSON object of the directory; empty if the file is not there and not required. Raises UserError."""
    path = pathlib.Path(directory) / name
    if not path.is_file():
        if required:
            raise UserError(f"'{directory}' has no {name}: give the directory of a Hugging Face checkpoint.")
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({error}).") from None
    if not isinstance(found, dict):
        raise UserError(f"'{path}' holds a JSON {type(found).__name__} where an object is expected.")
    return found


def family_of(config: Mapping[str, Any]) -> str:
    """The family named by a config.json; raises UserError for one that jtok does not know."""
    kind = config.get("model_type")
    if kind not in DEFAULTS:
        raise UserError(f"config.json is of model type {kind!r}; the vision-language models are {', '.join(DEFAULTS)}.")
    return kind


def image_settings(directory: str | pathlib.Path) -> ImageSettings:
    """Settings of a checkpoint directory. Raises UserError for files that are missing, broken or beyond these six."""
    config = read_json(directory, "config.json", required=True)
    family = family_of(config)
    stated = read_json(directory, "processor_config.json").get("image_processor") or read_json(
        directory, "preprocessor_config.json"
    )
    video = read_json(directory, "video_preprocessor_config.json") or stated
    try:
        return from_configs(family, config, stated, video)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"the image settings of '{directory}' are not what a {family} model has ({what}).") from None


def from_configs(
    family: str, config: Mapping[str, Any], stated: Mapping[str, Any], video: Mapping[str, Any]
) -> ImageSettings:
    """Settings from config.json, preprocessor_config.json and video_preprocessor_config.json, already read."""
    for switch in ("do_resize", "do_rescale", "do_normalize"):
        if stated.get(switch) is False:
            raise UserError(f"the preprocessor's config says {switch} is false, and no {family} model works like that.")
    tower = config.get("vision_config") or {}
    given = {key: value for key, value in stated.items() if value is not None}
    fields = {**DEFAULTS[family], **given}
    common = dict(
        family=family,
        mean=tuple(map(float, fields["image_mean"])),
        std=tuple(map(float, fields["image_std"])),
        scale=float(fields["rescale_factor"]),
        resample=int(fields["resample"]),
        patch=int(fields.get("patch_size") or tower.get("patch_size", 14)),
    )
    if family == "qwen2_5_vl":
        return ImageSettings(**common, **_qwen(fields, video, tower))
    return ImageSettings(**common, **_sizes(fields, tower), **_extras(family, fields, config, tower))


def _sizes(fields: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, Any]:
    """side, shortest and crop; sizes come as a number, as {shortest_edge} or as {height, width}."""
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
    seen = crop or (shortest or size["height"],) * 2
    if "image_size" in tower and seen != (side, side):
        raise UserError(f"the preprocessor makes {seen[0]} x {seen[1]} pixels and the tower sees {side} x {side}.")
    return dict(side=int(seen[0]), shortest=shortest, crop=crop)


def _extras(family: str, fields: Mapping[str, Any], config: Mapping[str, Any], tower: Mapping[str, Any]) -> dict:
    if family == "mllama":
        return dict(tiles=int(fields["max_image_tiles"]), class_token=True)
    if family == "paligemma":
        return {}
    full = config.get("vision_feature_select_strategy", "default") == "full"
    class_token = full and tower.get("model_type", "clip_vision_model") == "clip_vision_model"
    if family == "llava":
        return dict(pad=bool(fields["do_pad"]), class_token=class_token)
    if class_token:
        raise UserError("crops with class tokens make no grid: vision_feature_select_strategy must be 'default'.")
    points = config.get("image_grid_pinpoints") or fields["image_grid_pinpoints"]
    extras: dict[str, Any] = dict(pinpoints=tuple((int(rows), int(columns)) for rows, columns in points))
    if family == "llava_onevision":
        extras["max_crops"] = _max_crops(config.get("vision_aspect_ratio", "anyres_max_9"))
    return extras


def _max_crops(name: str) -> int:
    count = name.removeprefix("anyres_max_")
    if not count.isdigit() or count == name:
        raise UserError(f"vision_aspect_ratio is '{name}', and the known ones are 'anyres_max_' and a number.")
    return int(count)


def _qwen(fields: Mapping[str, Any], video: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        temporal=int(fields["temporal_patch_size"]),
        merge=int(fields["merge_size"]),
        pixels=_pixel_range(fields, QWEN_PIXELS["image"]),
        frame_pixels=_pixel_range(video, QWEN_PIXELS["video"]),
        ticks=int(tower.get("tokens_per_second", 4)),
    )


def _pixel_range(fields: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    size = fields.get("size") or {}
    least = fields.get("min_pixels") or size.get("shortest_edge") or default[0]
    most = fields.get("max_pixels") or size.get("longest_edge") or default[1]
    return int(least), int(most)
