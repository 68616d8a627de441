"""Names of tensors in checkpoints of decoders and vision-language models, in every spelling.

A name is cut into (part, layer, rest): the part it belongs to, the layer's number, and the remainder, which is
looked up in the part's table. Files, modules and older releases of transformers differ only in what leads.
"""

from __future__ import annotations

import re
from typing import Any

from jtok.checkpoints.match import Format
from jtok.checkpoints.rules import Rule, flat, fused, linear, norm, table
from jtok.checkpoints.vit_names import split_name

#: A part of a model and the module names by which it is known, anywhere in front.
_PARTS = {
    "tower.deep": re.compile(r"^(?:model\.)?vision_model\.global_transformer\."),
    "tower": re.compile(
        r"^(?:model\.)?(?:vision_tower\.(?:vision_model\.)?|visual\.(?!merger\.mlp\.)|vision_model\.(?:transformer\.)?)"
    ),
    "projector": re.compile(r"^(?:model\.)?(?:multi_modal_projector|visual\.merger\.mlp)\."),
    "newline": re.compile(r"^(?:model\.)?(?=image_newline$)"),
    "language": re.compile(r"^(?:(?:model|language_model|text_model)\.)*"),
}

#: Buffers that older files hold.
IGNORED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|masked_bias)$")


def split_part(name: str) -> tuple[str, int | None, str]:
    """(part, layer or None, rest of the name)."""
    for part, lead in _PARTS.items():
        match = lead.match(name)
        if match:
            return part, *split_name(name[match.end() :])
    raise AssertionError("the last part takes any name")


#: How names are read, with tables for the parts.
VLM = Format(split_part, lambda name: IGNORED.search(name) is not None)


def _heads(c: Any, name: str) -> slice:
    stops = {"q": (0, c.heads), "k": (c.heads, c.heads + c.kv_heads), "v": (c.heads + c.kv_heads, None)}
    return slice(*stops[name])


def _projection(name: str) -> list[Rule]:
    """Query, key or value heads of the fused projection."""
    theirs = f"self_attn.{name}_proj"
    return fused(theirs, "blocks.qkv", lambda c: (slice(None), _heads(c, name)), lambda c: _heads(c, name))


def _half(name: str, index: int) -> list[Rule]:
    """Gate or value half of the MLP."""
    return fused(f"mlp.{name}", "blocks.up", lambda c: (slice(None), index), lambda c: index)


LANGUAGE_NAMES = [
    table("embed_tokens.weight", "embedding"),
    *norm("input_layernorm", "blocks.norm1", bias=False),
    *_projection("q"),
    *_projection("k"),
    *_projection("v"),
    *linear("self_attn.o_proj", "blocks.out"),
    *norm("post_attention_layernorm", "blocks.norm2", bias=False),
    *_half("gate_proj", 0),
    *_half("up_proj", 1),
    *linear("mlp.down_proj", "blocks.down"),
    *norm("norm", "norm", bias=False),
    Rule(("lm_head.weight",), "head", "linear"),
]

#: Projectors: one linear layer (PaliGemma), or two (LLaVA; `0` and `2` in files of the original code).
PROJECTOR_NAMES = [*linear("linear_1 linear 0", "layers.0"), *linear("linear_2 2", "layers.1")]

NEWLINE_NAMES = [flat("image_newline", "")]
