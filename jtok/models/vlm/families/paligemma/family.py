"""PaliGemma (arXiv:2407.07726): SigLIP with its last norm, a linear projector, prompts with full attention."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jtok.layers.projector import ProjectorConfig
from jtok.models.decoder.decoder import Dtype
from jtok.models.vlm.families.llava.load import image_token, llava_parts, vit_language, vit_tower, with_defaults
from jtok.models.vlm.families.llava.processing import prepare
from jtok.models.vlm.family import Family
from jtok.models.vlm.network import VLMConfig
from jtok.models.vlm.processing.layout import VisualInput
from jtok.models.vlm.processing.settings import SIGLIP, ImageSettings, square_sizes

_NAME = "paligemma"
_DEFAULTS = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "image_token_index": 256000}

TEMPLATE = """\
{%- for message in messages -%}{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ image_token }}{%- endif -%}
{%- endfor -%}{%- endfor -%}
{{- bos_token -}}
{%- for message in messages -%}{%- for part in message.content -%}
{%- if part.type == 'text' -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endfor -%}
{{- '\\n' -}}
"""


def _config(path: str | os.PathLike, stated: Mapping[str, Any], dtype: Dtype) -> VLMConfig:
    fields = with_defaults(stated, _DEFAULTS)
    tower = vit_tower(path, fields, dtype, final_norm="tokens")
    language = vit_language(path, fields, "gemma", dtype, bidirectional=True)
    projector = ProjectorConfig(tower.width, language.width, depth=1)
    return VLMConfig(_NAME, tower, projector, language, image_token(fields), tower.class_token)


def _settings(fields: Mapping[str, Any], config: Mapping[str, Any], video: Mapping[str, Any]) -> dict[str, Any]:
    del video
    return square_sizes(fields, config.get("vision_config") or {})


def _positions(
    length: int, visuals: Sequence[VisualInput], offsets: Sequence[int], settings: ImageSettings
) -> Int[np.ndarray, " L"]:
    """Positions start at 1."""
    del visuals, offsets, settings
    return np.arange(1, 1 + length, dtype=np.int32)


FAMILY = Family(
    name=_NAME,
    config=_config,
    parts=llava_parts,
    preprocessor=SIGLIP,
    settings=_settings,
    prepare=prepare,  # LLaVA's with other settings: a square, and no crop
    template=lambda config: TEMPLATE,
    positions=_positions,
)
