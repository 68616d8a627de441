"""Named vision towers, and the one place where a config becomes a `ViTConfig`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from jtok.errors import UserError
from jtok.models.towers.vit import ViTConfig


def _size(width: int, depth: int, heads: int, mlp: int = 0) -> dict[str, int]:
    return {"width": width, "depth": depth, "heads": heads, "mlp": mlp or 4 * width}


_TINY, _SMALL, _BASE = _size(192, 12, 3), _size(384, 12, 6), _size(768, 12, 12)
_LARGE, _HUGE, _SO400M = _size(1024, 24, 16), _size(1280, 32, 16), _size(1152, 27, 16, 4304)
_VIT = {"classes": 1000}
_DEIT = {"classes": 1000, "distill_token": True, "head": "distill"}
_CLIP = {"pre_norm": True, "patch_bias": False, "act": "quick_gelu", "eps": 1e-5, "final_norm": "pooled"}
_SIGLIP = {"class_token": False, "head": "map", "act": "gelu_tanh"}
_SIGLIP2 = {**_SIGLIP, "packed": True, "table": 16}
_DINO = {"image": 518, "patch": 14, "layer_scale": True}
_DINO_REGISTERS = {**_DINO, "registers": 4, "antialias": True}

PRESETS: dict[str, dict[str, Any]] = {
    "scenes": {"image": 64, "patch": 8, **_size(96, 8, 3, 192), "classes": 10},
    "vit_ti16": {**_TINY, **_VIT},
    "vit_s16": {**_SMALL, **_VIT},
    "vit_b16": {**_BASE, **_VIT},
    "vit_l16": {**_LARGE, **_VIT},
    "vit_h14": {**_HUGE, **_VIT, "patch": 14},
    "deit_ti16": {**_TINY, **_DEIT},
    "deit_s16": {**_SMALL, **_DEIT},
    "deit_b16": {**_BASE, **_DEIT},
    "clip_b16": {**_BASE, **_CLIP},
    "clip_b32": {**_BASE, **_CLIP, "patch": 32},
    "clip_l14": {**_LARGE, **_CLIP, "patch": 14},
    "clip_l14_336": {**_LARGE, **_CLIP, "patch": 14, "image": 336},
    "siglip_b16": {**_BASE, **_SIGLIP},
    "siglip_l16_384": {**_LARGE, **_SIGLIP, "image": 384},
    "siglip_so400m_14_384": {**_SO400M, **_SIGLIP, "patch": 14, "image": 384, "crop": True},
    "siglip2_b16_naflex": {**_BASE, **_SIGLIP2},
    "siglip2_so400m_16_naflex": {**_SO400M, **_SIGLIP2},
    "dinov2_s14": {**_SMALL, **_DINO},
    "dinov2_b14": {**_BASE, **_DINO},
    "dinov2_l14": {**_LARGE, **_DINO},
    "dinov2_g14": {**_size(1536, 40, 24, 4096), **_DINO, "mlp_kind": "swiglu"},
    "dinov2_s14_registers": {**_SMALL, **_DINO_REGISTERS},
    "dinov2_b14_registers": {**_BASE, **_DINO_REGISTERS},
    "dinov2_l14_registers": {**_LARGE, **_DINO_REGISTERS},
}

#: Mean and standard deviation per colour channel, of pixels in [0, 1], that each family was trained with.
_IMAGENET, _HALF = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PIXELS = {
    "scenes": _IMAGENET,
    "vit": _HALF,
    "deit": _IMAGENET,
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": _HALF,
    "siglip2": _HALF,
    "dinov2": _IMAGENET,
}


def pixel_statistics(preset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) per channel with which images for a preset are normalised, pixels being in [0, 1]."""
    return PIXELS[preset.split("_")[0]]


def make_config(preset: str, overrides: Mapping[str, Any] | None = None) -> ViTConfig:
    """The `ViTConfig` of a preset with some fields changed.

    Raises UserError for an unknown preset or field, naming the nearest ones, and for widths that heads do not divide.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, 3, 0.4) or PRESETS
        raise UserError(f"there is no model preset '{preset}'; did you mean {' or '.join(near)}?")
    return check_config({**PRESETS[preset], **(overrides or {})})


def check_config(values: Mapping[str, Any]) -> ViTConfig:
    """The `ViTConfig` with these values. Raises UserError for an unknown field and for sizes that do not divide."""
    fields = [f.name for f in dataclasses.fields(ViTConfig)]
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 3) or fields
            raise UserError(f"a vision tower has no field '{name}'; did you mean {' or '.join(near)}?")
    config = ViTConfig(**values)
    if config.width % config.heads:
        raise UserError(f"width {config.width} is not a multiple of {config.heads} heads: choose a width that is.")
    if not (config.packed or config.crop) and config.image % config.patch:
        near = max(1, round(config.image / config.patch)) * config.patch
        raise UserError(f"an image of {config.image} pixels a side is no multiple of patch {config.patch}: {near} is.")
    return config
