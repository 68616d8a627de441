"""Qwen2.5-VL (arXiv:2502.13923)."""

from __future__ import annotations

from jtok.models.vlm.families.qwen2_5_vl import processing
from jtok.models.vlm.families.qwen2_5_vl.load import qwen_config, qwen_parts
from jtok.models.vlm.family import Family
from jtok.models.vlm.processing.chat import CHATML

FAMILY = Family(
    name="qwen2_5_vl",
    config=qwen_config,
    parts=qwen_parts,
    preprocessor=processing.PREPROCESSOR,
    settings=processing.settings,
    prepare=processing.prepare,
    prepare_video=processing.prepare_video,
    template=lambda config: CHATML,
    fences=("<|vision_start|>", "<|vision_end|>"),
    positions=processing.positions,
)
