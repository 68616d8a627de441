"""LLaVA-1.5 (arXiv:2310.03744)."""

from __future__ import annotations

from functools import partial

from jtok.models.vlm.families.llava import processing
from jtok.models.vlm.families.llava.load import llava_config, llava_parts
from jtok.models.vlm.families.llava.presets import PRESETS
from jtok.models.vlm.family import Family
from jtok.models.vlm.processing.chat import by_decoder

_DEFAULTS = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_token_index": 32000}

FAMILY = Family(
    name="llava",
    config=partial(llava_config, family="llava", defaults=_DEFAULTS),
    parts=llava_parts,
    preprocessor=processing.PREPROCESSOR,
    settings=processing.settings,
    prepare=processing.prepare,
    template=by_decoder,
    presets=PRESETS,
)
