"""Reads image settings of a checkpoint directory: its preprocessor's file, then its model's config, then the family.

A switch that would turn off a step every family takes (`do_resize`, `do_rescale`, `do_normalize`) is refused rather
than obeyed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from jtok.errors import UserError
from jtok.models.vlm.families.all import find
from jtok.models.vlm.processing.settings import ImageSettings, read_json


def image_settings(directory: str | pathlib.Path) -> ImageSettings:
    """Settings of a checkpoint directory. Raises UserError for files that are missing, broken or of no family."""
    config = read_json(directory, "config.json", required=True)
    family = find(config.get("model_type")).name
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
    record, tower = find(family), config.get("vision_config") or {}
    given = {key: value for key, value in stated.items() if value is not None}
    fields = {**record.preprocessor, **given}
    common = dict(
        family=family,
        mean=tuple(map(float, fields["image_mean"])),
        std=tuple(map(float, fields["image_std"])),
        scale=float(fields["rescale_factor"]),
        resample=int(fields["resample"]),
        patch=int(fields.get("patch_size") or tower.get("patch_size", 14)),
    )
    return ImageSettings(**common, **record.settings(fields, config, video))
