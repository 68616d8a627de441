"""LLaVA-NeXT (LLaVA-1.6): mosaics of crops."""

from __future__ import annotations

from functools import partial

from jtok.models.vlm.families.llava.load import llava_config, llava_parts
from jtok.models.vlm.families.llava_next import processing
from jtok.models.vlm.family import Family
from jtok.models.vlm.processing.chat import by_decoder

_DEFAULTS = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_token_index": 32000}

FAMILY = Family(
    name="llava_next",
    config=partial(llava_config, family="llava_next", defaults=_DEFAULTS, newline=True),
    parts=llava_parts,
    preprocessor=processing.PREPROCESSOR,
    settings=processing.settings,
    prepare=processing.prepare,
    template=by_decoder,
)
