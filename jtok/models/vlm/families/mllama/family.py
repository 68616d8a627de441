"""Llama-3.2-Vision (arXiv:2407.21783)."""

from __future__ import annotations

from jtok.models.vlm.families.mllama import processing
from jtok.models.vlm.families.mllama.load import mllama_config, mllama_parts
from jtok.models.vlm.family import Family
from jtok.models.vlm.processing.chat import PARTS

TEMPLATE = (
    PARTS
    + """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + parts(message, '', '') + '<|eot_id|>' }}
{%- endfor -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
"""
)

FAMILY = Family(
    name="mllama",
    config=mllama_config,
    parts=mllama_parts,
    preprocessor=processing.PREPROCESSOR,
    settings=processing.settings,
    prepare=processing.prepare,
    template=lambda config: TEMPLATE,
)
