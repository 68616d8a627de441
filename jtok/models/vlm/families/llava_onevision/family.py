"""LLaVA-OneVision (arXiv:2408.03326)."""

from __future__ import annotations

from functools import partial

from jtok.models.vlm.families.llava.load import llava_config, llava_parts
from jtok.models.vlm.families.llava_onevision import processing
from jtok.models.vlm.family import Family
from jtok.models.vlm.processing.chat import by_decoder

_DEFAULTS = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "image_token_index": 151646}

FAMILY = Family(
    name="llava_onevision",
    config=partial(llava_config, family="llava_onevision", defaults=_DEFAULTS, decoder="qwen2", newline=True),
    parts=llava_parts,
    preprocessor=processing.PREPROCESSOR,
    settings=processing.settings,
    prepare=processing.prepare,
    prepare_video=processing.prepare_video,
    template=by_decoder,
)
